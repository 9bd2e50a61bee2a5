import { defineConfig } from "vite";

// The built page lies in the Python package, so that its users need no Node.
export default defineConfig({
  base: "/studio/",
  build: {
    outDir: "../orchestrator/daemon/http/studio",
    emptyOutDir: true,
    chunkSizeWarningLimit: 1500,
    target: "es2022",
    modulePreload: { polyfill: false },
  },
});
