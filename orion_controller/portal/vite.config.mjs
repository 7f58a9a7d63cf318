import { defineConfig } from "vite";

export default defineConfig({
  // Relative, so that the portal also works behind a proxy that adds a path.
  base: "./",
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "dist",
    emptyOutDir: true,
    target: ["chrome123", "firefox121", "safari17.5"],
    cssTarget: ["chrome123", "firefox121", "safari17.5"],
    // A data: URL would be refused by the content security policy.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    sourcemap: false,
    reportCompressedSize: true,
  },
  // `npm run dev` beside a controller, or beside tests/portal/server.py.
  server: { proxy: { "/api": "http://127.0.0.1:15500" } },
});
