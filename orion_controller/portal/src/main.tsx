import { render } from "preact";
import { App } from "./app";
import { startLive } from "./live";
import "uplot/dist/uPlot.min.css";
import "./styles/base.css";
import "./styles/shell.css";
import "./styles/parts.css";

startLive();
render(<App />, document.getElementById("app")!);
