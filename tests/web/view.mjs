// Opens a .glb in headless Chromium with three.js, does what the job says, and saves a picture after each step.
//   node view.mjs head.glb job.json out_folder
// job.json: {"width", "height", "steps": [{"name", "weights": {unit: value}, "time": seconds, "relief": scale}, ...]}
import { readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const home = process.env.FACEFIT_NODE_MODULES ?? here;
const require = createRequire(`${home}/x.js`);
const puppeteer = (await import(require.resolve("puppeteer-core"))).default;
const [glb, jobFile, out] = process.argv.slice(2);
const job = JSON.parse(await readFile(jobFile));

const types = { ".html": "text/html", ".js": "text/javascript", ".glb": "model/gltf-binary" };
const server = createServer(async (request, response) => {
  const path = normalize(decodeURIComponent(new URL(request.url, "http://x").pathname));
  let file = join(here, "viewer.html");
  if (path === "/head.glb") file = glb;
  else if (path.startsWith("/three/")) file = join(home, "node_modules", path);
  try {
    const body = await readFile(file);
    response.writeHead(200, { "Content-Type": types[extname(file)] ?? "application/octet-stream" }).end(body);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const browser = await puppeteer.launch({
  executablePath: process.env.FACEFIT_CHROMIUM,
  args: ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"],
});
try {
  const page = await browser.newPage();
  const messages = [];
  page.on("console", (message) => messages.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => messages.push(`error: ${error.message}`));
  const address = `http://127.0.0.1:${server.address().port}/?width=${job.width}&height=${job.height}`;
  await page.goto(address);
  await page.waitForFunction("window.ready === true", { timeout: 60000 }).catch((error) => {
    throw new Error(`the page did not load the file: ${error.message}\n${messages.join("\n")}`);
  });
  const found = [];
  for (const step of job.steps) {
    const [count, picture] = await page.evaluate((s) => {
      const counts = Object.entries(s.weights ?? {}).map(([name, value]) => window.viewer.setWeight(name, value));
      if (s.time !== undefined) window.viewer.play(s.time);
      if (s.relief !== undefined) window.viewer.setRelief(s.relief);
      return [counts, window.viewer.draw()];
    }, step);
    found.push(count);
    await writeFile(join(out, `${step.name}.png`), Buffer.from(picture.split(",")[1], "base64"));
  }
  const about = await page.evaluate(async () => ({
    names: window.viewer.names(),
    clips: window.viewer.clips(),
    maps: window.viewer.maps(),
    wrinkles: await window.viewer.wrinkles(),
  }));
  console.log(JSON.stringify({ ...about, found, messages }));
} finally {
  await browser.close();
  server.close();
}
