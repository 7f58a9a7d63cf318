// Writes what belongs to a build beside it: dist/licenses.txt (of the libraries in the bundle) and dist/build.json (a hash
// of the sources, by which a test sees that dist was built from them).
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";

const SOURCES = ["build_info.mjs", "index.html", "package-lock.json", "package.json", "public", "src", "tsconfig.json", "vite.config.mjs"];
const BUNDLED = ["preact", "@preact/signals", "@preact/signals-core", "uplot"];

/** Paths of the files under `paths`, in the order of their bytes. */
function filesOf(paths) {
  const found = [];
  for (const path of paths) {
    if (statSync(path).isDirectory()) found.push(...filesOf(readdirSync(path).map((name) => `${path}/${name}`)));
    else found.push(path);
  }
  return found.sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
}

function sha256(data) {
  return createHash("sha256").update(data).digest("hex");
}

const licences = BUNDLED.map((name) => {
  const folder = `node_modules/${name}`;
  const { version } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  return `${name} ${version}\n\n${readFileSync(`${folder}/${file}`, "utf8").trim()}\n`;
});
writeFileSync("dist/licenses.txt", licences.join("\n" + "-".repeat(80) + "\n\n"));

const sources = filesOf(SOURCES).map((path) => `${sha256(readFileSync(path))}  ${path}\n`);
const files = Object.fromEntries(
  filesOf(["dist"]).filter((path) => path !== "dist/build.json").map((path) => [path.slice("dist/".length), sha256(readFileSync(path))]),
);
writeFileSync("dist/build.json", JSON.stringify({ sources_sha256: sha256(sources.join("")), files }, null, 2) + "\n");
