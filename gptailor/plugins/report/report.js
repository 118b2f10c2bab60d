"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const root = document.documentElement;

  // Light or dark: as the system has it, until the button says otherwise.
  const button = document.getElementById("theme");
  const wanted = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wanted.matches);
  const name = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", dark() ? "Show the page light" : "Show the page dark");
    button.setAttribute("aria-pressed", String(Boolean(root.dataset.theme)));
  };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    name();
  });
  wanted.addEventListener("change", name);
  name();

  // Texts that can be copied; a page from disk may not be let at the clipboard, but can select.
  document.addEventListener("click", async (event) => {
    const copy = event.target.closest?.(".copy");
    if (!copy) return;
    const pre = copy.parentElement.querySelector("pre");
    let done = false;
    try {
      await navigator.clipboard.writeText(pre.textContent);
      done = true;
    } catch {
      getSelection().selectAllChildren(pre);
      done = document.execCommand("copy");
    }
    copy.textContent = done ? "Copied" : "Selected";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });

  // Texts of plans: chosen from the list, or by a click on what has a plan in the chart.
  const plans = read("plans");
  const show = (section, plan) => {
    const pre = document.getElementById(`${section}-text`);
    pre.textContent = plans[section][plan] ?? "";
    pre.parentElement.hidden = !pre.textContent;
  };
  for (const list of document.querySelectorAll("[data-plans]")) {
    list.addEventListener("change", () => show(list.dataset.plans, list.value));
  }

  // The charts. They say `var(--ink)`, so that the page's colours are theirs.
  const charts = read("charts");
  const config = read("config");
  const drawn = [...document.querySelectorAll("[data-chart]")].map(async (place) => {
    const section = place.dataset.chart;
    const { view } = await vegaEmbed(place, charts[section], { renderer: "svg", actions: false, config });
    view.addEventListener("click", (_, item) => {
      const plan = item?.datum?.plan;
      if (!plans[section] || !(plan in plans[section])) return;
      document.getElementById(`${section}-plan`).value = plan;
      show(section, plan);
    });
  });
  Promise.all(drawn).then(
    () => { root.dataset.ready = "true"; },
    (error) => { root.dataset.ready = "failed"; console.error(error); },
  );
})();
