import { render } from "preact";
import { startKeys } from "./parts/keys";
import { startRouter } from "./state/route";
import { Shell } from "./views/shell";
import "./style.css";
import "uplot/dist/uPlot.min.css";

startRouter();
startKeys();
render(<Shell />, document.getElementById("app")!);
