"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const PAGE = 25;
  let limit = PAGE;

  const option = (select, value, text) => {
    const node = document.createElement("option");
    node.value = value;
    node.textContent = text;
    select.append(node);
  };
  data.pairs.forEach(([a, b], i) => option(get("pair"), i, `${data.arms[b]} against ${data.arms[a]}`));
  // Nearly every text's perplexity differs a little, so those tasks are shown when asked for.
  const apart = data.tasks.some((task) => task.likelihood) && data.tasks.some((task) => !task.likelihood);
  option(get("task"), "", apart ? "all but perplexities" : "all tasks");
  data.tasks.forEach((task, i) => option(get("task"), i, task.name));

  const element = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = (value) => (value === null ? "–" : Number.isInteger(value) ? String(value) : value.toPrecision(3));
  const block = (heading, text, className, wide) => {
    const box = element("div", wide ? "wide" : "");
    box.append(element("h4", "", heading), element("pre", className, text === "" ? "(empty)" : text));
    return box;
  };
  // How b did against a on one item: above 0 is better, null where one of them has no value.
  const gain = (item, a, b) => {
    if (item.values[a] === null || item.values[b] === null) return null;
    const change = item.values[b] - item.values[a];
    return data.tasks[item.task].higher ? change : -change;
  };

  const render = (item, a, b) => {
    const better = gain(item, a, b) > 0;
    const box = element("details", "item");
    const line = element("summary");
    line.append(
      element("span", `badge ${better ? "better" : "worse"}`, better ? "▲ better" : "▼ worse"),
      element("b", "", `${item.name} ${item.id}${item.repeat ? ` (repeat ${item.repeat})` : ""}`),
      element("span", "peek", (item.prompt || item.target).slice(-160)),
      element("span", "scores", `${number(item.values[a])} → ${number(item.values[b])}`),
    );
    box.append(line);
    box.addEventListener("toggle", () => {
      if (!box.open || box.querySelector(".body")) return;
      const body = element("div", "body");
      if (item.prompt) body.append(block("Prompt", item.prompt, "", true));
      const likelihood = data.tasks[item.task].likelihood;
      if (item.target) body.append(block(likelihood ? "Text" : "Target", item.target, "", true));
      [a, b].forEach((arm) => {
        if (likelihood && !item.outputs[arm]) return;
        const tone = (arm === b) === better ? "better" : "worse";
        const text = item.outputs[arm] ?? "(not answered)";
        body.append(block(`${data.arms[arm]}: ${number(item.values[arm])}${item.reasons[arm] ? `, ${item.reasons[arm]}` : ""}`, text, tone));
      });
      box.append(body);
    });
    return box;
  };

  const update = () => {
    if (!data.pairs.length) return;
    const [a, b] = data.pairs[Number(get("pair").value || 0)];
    const task = get("task").value;
    const direction = get("direction").value;
    const words = get("search").value.trim().toLowerCase();
    const found = data.items.filter((item) => {
      const change = gain(item, a, b);
      if (change === null || change === 0) return false;
      if (task !== "" && item.task !== Number(task)) return false;
      if (task === "" && apart && data.tasks[item.task].likelihood) return false;
      if (direction && (change > 0 ? "better" : "worse") !== direction) return false;
      if (!words) return true;
      return [item.prompt, item.target, item.outputs[a], item.outputs[b]].join("\n").toLowerCase().includes(words);
    });
    const better = found.filter((item) => gain(item, a, b) > 0).length;
    get("shown").textContent = `${found.length} items: ${better} better and ${found.length - better} worse under ${data.arms[b]}`;
    get("list").replaceChildren(...found.slice(0, limit).map((item) => render(item, a, b)));
    get("more").hidden = found.length <= limit;
  };
  get("filters").addEventListener("input", () => { limit = PAGE; update(); });
  get("more").addEventListener("click", () => { limit += PAGE; update(); });
  update();
})();
