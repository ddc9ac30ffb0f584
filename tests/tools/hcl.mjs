// What HashiCorp's own parser makes of Terraform files: JSON on standard output, by file; its words and status 1 for
// what it cannot read. Arguments: the folder of the package @cdktf/hcl2json, then the files.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [parser, ...files] = process.argv.slice(2);
const { parse } = createRequire(import.meta.url)(parser);
try {
  const parsed = {};
  for (const file of files) parsed[file] = await parse(file, readFileSync(file, "utf8"));
  process.stdout.write(JSON.stringify(parsed), () => process.exit(0));
} catch (error) {
  process.stderr.write(`${error.message ?? error}\n`, () => process.exit(1));
}
