// The sums of helpers.costs.plan. Every number comes from `model`, which Python exports;
// `given` holds the sizes that a reader sets. Factors are multiplied in the same order,
// so that both languages round alike.

function product(factor, names, sizes) {
  return names.reduce((value, name) => value * sizes[name], factor);
}

function planStudy(model, given) {
  const { devices, rate, disk, stages, ...inputs } = given;
  const sizes = { ...model.constants, ...inputs };
  for (const [name, sums] of Object.entries(model.derived)) {
    sizes[name] = Math.min(
      ...sums.map((sum) =>
        sum.reduce((total, [factor, of]) => total + product(factor, of, sizes), 0)
      )
    );
  }
  const rows = stages.map((stage) => {
    const found = Object.fromEntries(model.counts.map((name) => [name, 0]));
    for (const [of, count, factor, names] of model.terms) {
      if (of !== stage) continue;
      const value = product(factor, names, sizes);
      found[count] = count === "memory" ? Math.max(found[count], value) : found[count] + value;
    }
    let flop = 0;
    for (const [count, each] of Object.entries(model.flop)) flop += found[count] * each;
    const jobs = product(1, model.units[stage], sizes);
    const hours = flop / rate / 3600;
    const waiting = found.moved / disk / 3600;
    const busy = (Math.ceil(jobs / devices) * hours) / jobs;
    const cause = waiting > busy ? "disk" : jobs < devices ? "too few jobs" : "arithmetic";
    return {
      stage,
      cause,
      pflop: flop / 1e15,
      device_hours: hours,
      kept_gb: found.kept / 1e9,
      memory_gb: found.memory / 1e9,
      jobs,
      wall_hours: Math.max(busy, waiting),
    };
  });
  const totals = { stage: "all of it" };
  for (const name of model.columns) {
    const values = rows.map((row) => row[name]);
    totals[name] =
      name === "memory_gb" ? Math.max(...values) : values.reduce((a, b) => a + b, 0);
  }
  const slowest = rows.reduce((a, b) => (b.wall_hours > a.wall_hours ? b : a));
  return { rows, totals, bottleneck: `${slowest.stage}: ${slowest.cause}` };
}

// What the fields of a form say, or null where one cannot be read.
function readForm(form, model) {
  const value = (name) => form.elements[name].valueAsNumber;
  const checked = (name) => (form.elements[name].checked ? 1 : 0);
  const orAll = (name, all) => (form.elements[name].value === "" ? all : value(name));
  const widths = form.elements.widths.value.split(",").map(Number);
  const stages = model.stages.filter((stage) => form.elements[stage].checked);
  const readable = widths.every((width) => Number.isInteger(width) && width > 0);
  if (!form.checkValidity() || !readable || !stages.length) return null;
  const tissues = value("tissues");
  return {
    tissues,
    windows: value("windows"),
    biosamples: value("biosamples"),
    blocks: value("blocks"),
    dictionaries: value("seeds") * widths.length,
    features: value("seeds") * widths.reduce((a, b) => a + b, 0),
    d_sae: Math.max(...widths),
    training_tokens: orAll("training_tokens", Infinity),
    causal_tissues: Math.min(tissues, orAll("causal_tissues", tissues)),
    keep_streams: checked("keep_streams"),
    fan_out: checked("fan_out"),
    shards: value("shards"),
    devices: value("devices"),
    rate: (value("peak_tflops") * 1e12 * value("efficiency")) / 100,
    disk: value("disk_gb_per_s") * 1e9,
    stages,
  };
}

function shown(value) {
  if (value === 0) return "0";
  if (value < 0.005) return "< 0.01";
  const digits = value < 10 ? 2 : value < 100 ? 1 : 0;
  return value.toLocaleString("en-US", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}

function attach(box, model) {
  const form = box.querySelector("form");
  const body = box.querySelector("tbody");
  const said = box.querySelector("output");
  form.hidden = false;
  const update = () => {
    const given = readForm(form, model);
    if (given === null) {
      said.textContent = "A field cannot be read: whole positive numbers are needed.";
      return;
    }
    const found = planStudy(model, given);
    body.replaceChildren(
      ...[...found.rows, found.totals].map((row) => {
        const line = document.createElement("tr");
        const head = document.createElement("th");
        head.scope = "row";
        head.textContent = row.stage;
        const cells = model.columns.map((name) => {
          const cell = document.createElement("td");
          cell.textContent = name === "jobs" ? row.jobs.toLocaleString("en-US") : shown(row[name]);
          return cell;
        });
        line.append(head, ...cells);
        return line;
      })
    );
    said.textContent = `Slowest: ${found.bottleneck}.`;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}
