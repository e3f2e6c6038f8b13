// Grafana takes the default export of this, which esbuild has as a property of what it exports.
export { Scrollbars, Scrollbars as default } from './node_modules/react-custom-scrollbars-2/lib/index.js';
