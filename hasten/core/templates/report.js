"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function dressed(layout, width) {
    const line = colour("--line");
    const muted = colour("--muted");
    const axis = { gridcolor: line, linecolor: line, zeroline: false, tickcolor: line, automargin: true, tickfont: { color: muted } };
    const titled = (own) => ({ ...axis, ...own, title: { ...own.title, standoff: 12, font: { size: 13, color: muted } } });
    const narrow = width < 720;
    return {
      ...layout,
      xaxis: titled(layout.xaxis),
      yaxis: titled(layout.yaxis),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("--ink") },
      margin: { l: 58, r: 16, t: 10, b: 48 },
      shapes: (layout.shapes || []).map((shape) => ({ ...shape, label: { ...shape.label, font: { size: 12, color: muted } } })),
      legend: narrow
        ? { ...layout.legend, orientation: "h", y: -0.2, yanchor: "top", x: 0 }
        : { ...layout.legend, x: 1.02, y: 1 },
      hoverlabel: { bgcolor: colour("--surface"), bordercolor: line, font: { color: colour("--ink") }, align: "left" },
    };
  }

  const options = { responsive: true, displayModeBar: false };

  function draw(section) {
    const place = section.querySelector(".chart");
    const figure = place && charts[section.dataset.charts][section.dataset.by];
    if (figure) Plotly.react(place, structuredClone(figure.data), dressed(figure.layout, place.clientWidth), options);
  }

  function choose(section, by) {
    section.dataset.by = by;
    for (const button of section.querySelectorAll(".switch button")) {
      button.setAttribute("aria-pressed", String(button.dataset.by === by));
    }
    const panels = [...section.querySelectorAll("[data-panel]")];
    for (const panel of panels) panel.hidden = panels.length > 1 && panel.dataset.panel !== by;
    draw(section);
  }

  const sections = [...document.querySelectorAll("section[data-charts]")];
  for (const section of sections) {
    const pressed = section.querySelector(".switch button[aria-pressed=true]");
    if (!pressed) continue;
    choose(section, pressed.dataset.by);
    for (const button of section.querySelectorAll(".switch button")) {
      button.addEventListener("click", () => choose(section, button.dataset.by));
    }
  }
  dark.addEventListener("change", () => sections.forEach(draw));

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      await copy(document.getElementById(button.dataset.copy).textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }
})();
