// What GitHub's own language service says of workflows: JSON on standard output, a list of [file, line, message].
// Arguments: the folder of the package @actions/languageservice, the table of actions, the root that references to
// this repository start at, then the files.
import { readFileSync } from "node:fs";
import { createRequire, registerHooks } from "node:module";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

// The package is made for bundlers: it imports JSON without saying so.
registerHooks({
  load(url, context, next) {
    if (!url.endsWith(".json")) return next(url, context);
    return { format: "module", shortCircuit: true, source: `export default ${readFileSync(fileURLToPath(url), "utf8")}` };
  },
});

const [service, table, root, ...files] = process.argv.slice(2);
const require = createRequire(join(service, "package.json"));
const { validate } = await import(pathToFileURL(join(service, "dist", "validate.js")));
const { TextDocument } = await import(pathToFileURL(require.resolve("vscode-languageserver-textdocument")));

const actions = JSON.parse(readFileSync(table, "utf8"));
const described = (names, required) => Object.fromEntries(names.map((name) => [name, { description: name, required: required.includes(name) }]));
const config = {
  actionsMetadataProvider: {
    fetchActionMetadata: async ({ owner, name, path }) => {
      const action = actions[[owner, name, path].filter(Boolean).join("/")];
      return action && { name, description: name, inputs: described(action.inputs, action.required), outputs: described(action.outputs, []) };
    },
  },
  fileProvider: {
    getFileContent: async ({ path }) => ({ name: path, content: readFileSync(join(root, path), "utf8") }),
  },
};

const found = [];
for (const file of files) {
  const document = TextDocument.create(pathToFileURL(file).href, "yaml", 1, readFileSync(file, "utf8"));
  for (const { range, message } of await validate(document, config)) found.push([file, range.start.line + 1, message]);
}
process.stdout.write(JSON.stringify(found));
