// Judges objects of custom resources by the validators of @kubernetes-models, which are JSON schemas compiled to
// JavaScript. Reads [{module, object}, ...] from standard input, writes a list of complaints for each of them.
//
// These validators know types, formats, enumerations and what is required, and let unknown fields pass, as an API server
// does that prunes them. Here a typo has to fail. A validator looks at each field that it knows, so it gets the object
// behind a proxy that notes what is looked at: what nobody has looked at, nobody knows.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

function observed(value, path, nodes) {
  if (value === null || typeof value !== "object") return value;
  const node = {value, path, seen: new Set()};
  const inner = new Map();
  nodes.push(node);
  return new Proxy(value, {
    get(target, key) {
      const found = target[key];
      if (typeof key === "symbol" || !Object.hasOwn(target, key)) return found;
      node.seen.add(key);
      if (!inner.has(key)) inner.set(key, observed(found, `${path}/${key}`, nodes));
      return inner.get(key);
    },
  });
}

async function complaints({module, object}) {
  const {validate} = await import(pathToFileURL(module));
  const nodes = [];
  const found = [];
  if (!validate(observed(object, "", nodes))) {
    for (const error of validate.errors) found.push(`${error.instancePath}: ${error.keyword} ${JSON.stringify(error.params)}`);
  }
  for (const {value, path, seen} of nodes) {
    for (const key of Object.keys(value)) if (!seen.has(key)) found.push(`${path}/${key}: unknown field`);
  }
  return found;
}

const asked = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(await Promise.all(asked.map(complaints))));
