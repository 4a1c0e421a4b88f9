// Values under the pointer: the legend of a chart shows the last values; while a chart is hovered or focused, those at that step.
for (const plot of document.querySelectorAll("[data-chart]")) {
  const { x: [left, right], lines } = JSON.parse(plot.dataset.chart);
  const figure = plot.closest("figure");
  const values = [...figure.querySelectorAll(".legend b")];
  const last = values.map((value) => value.textContent);
  const at = figure.querySelector(".at");
  const steps = [...new Set(lines.flatMap((line) => line.map(([x]) => x)))].sort((a, b) => a - b);
  const cursor = document.createElement("i");
  cursor.className = "cursor";
  let index = steps.length - 1;

  const show = (next) => {
    index = Math.max(0, Math.min(steps.length - 1, next));
    const step = steps[index];
    cursor.style.left = `${right > left ? (100 * (step - left)) / (right - left) : 50}%`;
    plot.append(cursor);
    at.textContent = `step ${step.toLocaleString("en")}`;
    lines.forEach((line, k) => {
      let nearest = line[0];
      for (const point of line) if (Math.abs(point[0] - step) < Math.abs(nearest[0] - step)) nearest = point;
      values[k].textContent = nearest[1] ?? "not finite";
    });
  };
  const hide = () => {
    cursor.remove();
    at.textContent = "";
    values.forEach((value, k) => { value.textContent = last[k]; });
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const step = left + ((event.clientX - box.left) / box.width) * (right - left);
    let nearest = 0;
    steps.forEach((x, k) => { if (Math.abs(x - step) < Math.abs(steps[nearest] - step)) nearest = k; });
    show(nearest);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", () => show(steps.length - 1));
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
    if (move) { event.preventDefault(); show(index + move); }
  });
}

// Paper cannot be unfolded.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
