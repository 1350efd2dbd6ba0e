"use strict";
(() => {
  const PAGE = 50;
  const get = (id) => document.getElementById(id);
  const element = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const unpack = async () => {
    const bytes = Uint8Array.from(atob(get("data").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };

  const start = (data) => {
    const count = data.id.length;
    const state = { a: 0, b: 0, found: [], shown: 0 };
    const texts = new Array(count);
    const leafOf = (i) => data.leaves[data.leaf[i]];
    const output = (i, arm) => {
      const own = data.outputs[i][arm];
      return typeof own === "number" ? data.outputs[i][own] : own;
    };
    // How b did against a on one item: above 0 is better, null where one of them has no value.
    const gain = (i) => {
      const [a, b] = [data.values[i][state.a], data.values[i][state.b]];
      if (a === null || b === null) return null;
      return data.tasks[data.task[i]].higher ? b - a : a - b;
    };
    const direction = (i) => {
      const change = gain(i);
      return change === null ? "none" : change > 0 ? "better" : change < 0 ? "worse" : "same";
    };
    // Right and wrong are marked where items are one or the other: a rating of 1 out of 10 is neither.
    const binary = data.tasks.map(() => true);
    data.values.forEach((own, i) => {
      if (!own.every((value) => value === null || value === 0 || value === 1)) binary[data.task[i]] = false;
    });
    const rightness = (i, value) => {
      if (value === null || !binary[data.task[i]]) return "";
      return (value === 1) === data.tasks[data.task[i]].higher ? " ✓" : " ✗";
    };
    const SIGNS = { better: "▲ gained", worse: "▼ lost", same: "= no change", none: "– no score" };
    const number = (value) => (value === null ? "–" : Number.isInteger(value) ? String(value) : value.toPrecision(3));
    const searchable = (i) => {
      texts[i] ??= [leafOf(i).name, String(data.id[i]), data.prompt[i], data.target[i],
        ...data.outputs[i].filter((text) => typeof text === "string")].join("\n").toLowerCase();
      return texts[i];
    };

    // ---- an open item
    const block = (heading, className) => {
      const box = element("div", className);
      box.append(element("h4", "", heading));
      return box;
    };
    const textBox = (text, className) => element("pre", className, text === "" ? "(empty)" : text);
    const marked = (parts, name) => {
      const box = element("pre");
      parts.forEach(([text, own]) => box.append(own ? element(name, "", text) : text));
      return box;
    };
    const outputs = (i) => {
      const pair = [state.a, state.b].map((arm) => output(i, arm));
      const differ = pair.every((text) => text) && pair[0] !== pair[1];
      const parts = differ ? wordDiff(pair[0], pair[1]) : null;
      const common = parts && parts[0].some(([text, own]) => !own && text.trim());
      return [state.a, state.b].map((arm, side) => {
        const value = data.values[i][arm];
        const reason = data.reasons[i][arm];
        const box = block(`${data.arms[arm]}: ${number(value)}${rightness(i, value)}${reason ? `, ${reason}` : ""}`, "side");
        if (pair[side] === null) box.append(textBox("(not answered)"));
        else if (common) box.append(marked(parts[side], side ? "ins" : "del"));
        else box.append(textBox(pair[side]));
        return box;
      });
    };
    // Probability of each choice among the choices, from the log-likelihoods in hundredths of a nat.
    const shares = (scores) => {
      const best = Math.max(...scores);
      const each = scores.map((score) => Math.exp((score - best) / 100));
      const total = each.reduce((sum, value) => sum + value, 0);
      return each.map((value) => value / total);
    };
    const bars = (i) => {
      const arms = [state.a, state.b].filter((arm) => data.scores[i][arm]);
      if (!arms.length) return [];
      const box = block("Choices: log-likelihood in nats, and as a share of all choices", "wide");
      const table = element("table", "choices");
      const names = data.choices[i];
      const found = Object.fromEntries(arms.map((arm) => [arm, shares(data.scores[i][arm])]));
      data.scores[i][arms[0]].forEach((_, choice) => {
        const group = table.createTBody();
        const name = element("th", "", `${choice + 1}${names[choice] ? `. ${names[choice]}` : ""}`);
        if (names[choice] && names[choice].trim() === data.target[i].trim()) name.append(" ", element("small", "", "target"));
        name.colSpan = 4;
        name.scope = "rowgroup";
        group.insertRow().append(name);
        arms.forEach((arm) => {
          const row = group.insertRow();
          const scores = data.scores[i][arm];
          const best = scores[choice] === Math.max(...scores);
          row.append(element("td", "nowrap", `${data.arms[arm]}${best ? " ◀" : ""}`));
          const cell = row.insertCell();
          const bar = element("span", `bar arm${arm % 6}`);
          bar.style.width = `${100 * found[arm][choice]}%`;
          cell.className = "bars";
          cell.append(bar);
          row.append(element("td", "number nowrap", (scores[choice] / 100).toFixed(2).replace("-", "−")));
          row.append(element("td", "number nowrap", `${(100 * found[arm][choice]).toFixed(1)} %`));
        });
      });
      box.append(table);
      return [box];
    };
    const body = (i) => {
      const box = element("div", "body");
      const likelihood = data.tasks[data.task[i]].likelihood;
      const prefix = leafOf(i).prefix;
      if (prefix) {
        const shared = element("details", "wide shared");
        shared.append(element("summary", "", "Beginning that all prompts of this task share"), textBox(prefix));
        box.append(shared);
      }
      [["Prompt", data.prompt[i]], [likelihood ? "Text" : "Target", data.target[i]]].forEach(([heading, text]) => {
        if (!text) return;
        const own = block(heading, "wide");
        own.append(textBox(text));
        box.append(own);
      });
      if (!likelihood) box.append(...outputs(i));
      box.append(...bars(i));
      return box;
    };

    // ---- the list
    const peek = (text) => (text.length > 160 ? `… ${text.slice(-160)}` : text);
    const line = (i) => {
      const box = element("details", "item");
      const summary = element("summary");
      const kind = direction(i);
      const repeat = data.repeat[i] ? ` (repeat ${data.repeat[i]})` : "";
      summary.append(
        element("span", `badge ${kind}`, SIGNS[kind]),
        element("b", "", `${leafOf(i).name} ${data.id[i]}${repeat}`),
        element("span", "peek", peek(data.prompt[i] || data.target[i])),
        element("span", "scores", `${number(data.values[i][state.a])} → ${number(data.values[i][state.b])}`),
      );
      summary.tabIndex = -1;
      box.append(summary);
      box.addEventListener("toggle", () => {
        if (box.open && !box.querySelector(".body")) box.append(body(i));
      });
      return box;
    };
    const more = () => {
      const next = state.found.slice(state.shown, state.shown + PAGE);
      get("list").append(...next.map(line));
      state.shown += next.length;
      get("more").hidden = state.shown >= state.found.length;
    };
    // One stop of the tab key for the whole list; arrows go through it.
    const current = (summary, focus) => {
      get("list").querySelectorAll('.item > summary[tabindex="0"]').forEach((node) => { node.tabIndex = -1; });
      if (!summary) return;
      summary.tabIndex = 0;
      if (focus) {
        summary.focus();
        summary.scrollIntoView({ block: "nearest" });
      }
    };
    const summaries = () => [...get("list").querySelectorAll(".item > summary")];
    const orders = {
      task: (i, j) => data.task[i] - data.task[j] || Math.abs(gain(j)) - Math.abs(gain(i)) || i - j,
      change: (i, j) => Math.abs(gain(j)) - Math.abs(gain(i)) || i - j,
      data: (i, j) => i - j,
      low: (i, j) => (data.values[i][state.b] ?? Infinity) - (data.values[j][state.b] ?? Infinity) || i - j,
      high: (i, j) => (data.values[j][state.b] ?? -Infinity) - (data.values[i][state.b] ?? -Infinity) || i - j,
    };
    const apart = data.tasks.some((task) => task.likelihood) && data.tasks.some((task) => !task.likelihood);
    const update = () => {
      if (!data.pairs.length) return;
      [state.a, state.b] = data.pairs[Number(get("pair").value || 0)];
      const task = get("task").value;
      const wanted = get("direction").value;
      const words = get("search").value.trim().toLowerCase();
      const counts = { better: 0, worse: 0, same: 0, none: 0 };
      state.found = [];
      for (let i = 0; i < count; i += 1) {
        const kind = direction(i);
        if (wanted === "changed" ? kind !== "better" && kind !== "worse" : wanted && kind !== wanted) continue;
        if (task !== "" ? data.task[i] !== Number(task) : apart && data.tasks[data.task[i]].likelihood) continue;
        if (words && !searchable(i).includes(words)) continue;
        counts[kind] += 1;
        state.found.push(i);
      }
      state.found.sort(orders[get("sort").value]);
      state.shown = 0;
      get("shown").textContent = `${state.found.length.toLocaleString("en")} items: ${counts.better} gained, `
        + `${counts.worse} lost, ${counts.same} without a change under ${data.arms[state.b]}`
        + `${counts.none ? `; ${counts.none} without a score` : ""}`;
      get("list").replaceChildren();
      more();
      current(summaries()[0], false);
    };
    const option = (select, value, text) => {
      const node = element("option", "", text);
      node.value = value;
      select.append(node);
    };

    data.pairs.forEach(([a, b], i) => option(get("pair"), i, `${data.arms[b]} against ${data.arms[a]}`));
    // Nearly every text's perplexity differs a little, so those tasks are shown when asked for.
    option(get("task"), "", apart ? "all but perplexities" : "all tasks");
    data.tasks.forEach((task, i) => option(get("task"), i, task.name));
    let waiting = 0;
    const later = () => {
      clearTimeout(waiting);
      waiting = setTimeout(update, 80);
    };
    get("filters").addEventListener("input", later);
    get("filters").addEventListener("change", later);
    get("filters").addEventListener("submit", (event) => event.preventDefault());
    get("more").addEventListener("click", () => {
      const place = state.shown;
      more();
      current(summaries()[place], true);
    });
    get("list").addEventListener("focusin", (event) => {
      const summary = event.target.closest(".item > summary");
      if (summary) current(summary, false);
    });
    get("list").addEventListener("keydown", (event) => {
      const at = event.target.closest(".item > summary");
      if (!at || event.ctrlKey || event.altKey || event.metaKey) return;
      const place = summaries().indexOf(at);
      const goal = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: state.shown - 1 }[event.key];
      if (event.key === "Escape") at.parentElement.open = false;
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") at.parentElement.open = event.key === "ArrowRight";
      if (goal === undefined) return;
      event.preventDefault();
      if (goal >= state.shown && state.shown < state.found.length) more();
      current(summaries()[goal] || at, true);
    });
    update();
  };

  const closed = [];
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details.print:not([open])").forEach((node) => {
      node.open = true;
      closed.push(node);
    });
  });
  addEventListener("afterprint", () => closed.splice(0).forEach((node) => { node.open = false; }));
  if (!get("data")) return;
  unpack().then(start).catch((error) => {
    get("shown").textContent = `The items cannot be shown by this browser: ${error.message}. They are in runs/.`;
  });
})();
