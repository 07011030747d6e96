// The gallery: filters, and for each chosen sample its images under every chosen attack side by side.
(() => {
  const source = document.getElementById("gallery-data");
  if (!source) return;
  const { entries, images } = JSON.parse(source.textContent);
  const form = document.getElementById("gallery-filters");
  const place = document.getElementById("gallery-samples");
  const more = document.getElementById("gallery-more");
  const count = document.getElementById("gallery-count");
  const filters = { model: "Model", attack: "Attack", threat: "Threat", change: "Change", outcome: "Outcome", label: "Class", sample: "Sample" };
  const make = (tag, text, parent, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    if (parent) parent.append(element);
    return element;
  };
  for (const [key, title] of Object.entries(filters)) {
    const values = [...new Set(entries.map((entry) => entry[key]))].filter((value) => value !== undefined);
    if (values.length < 2) continue;
    if (typeof values[0] === "number") values.sort((a, b) => a - b);
    const label = make("label", `${title} `, form);
    const select = make("select", undefined, label);
    select.name = key;
    make("option", "all", select).value = "";
    for (const value of values) make("option", value, select).value = String(value);
  }
  const PAGE = 24;
  let chosen = [], shown = 0;
  const choose = () => {
    const wanted = [...form.querySelectorAll("select")].filter((select) => select.value !== "");
    const fits = entries.filter((entry) => wanted.every((select) => String(entry[select.name]) === select.value));
    const groups = new Map();
    for (const entry of fits) {
      const key = `${entry.sample} ${entry.images[0]}`;
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(entry);
    }
    chosen = [...groups.values()];
    count.textContent = `${chosen.length} samples, ${fits.length} results`;
    place.replaceChildren();
    shown = 0;
    show();
  };
  const show = () => {
    for (const group of chosen.slice(shown, shown + PAGE)) place.append(card(group));
    shown = Math.min(shown + PAGE, chosen.length);
    more.hidden = shown >= chosen.length;
  };
  const picture = (number, text, parent) => {
    const image = make("img", undefined, parent);
    image.src = images[number];
    image.alt = text;
    return image;
  };
  const caption = (text, parent) => {  // a long name breaks behind a sign, not inside a word
    const place = make("figcaption", undefined, parent);
    for (const part of text.split(/(?<=[:=,_/.])/)) place.append(part, document.createElement("wbr"));
  };
  const card = (group) => {
    const first = group[0];
    const box = make("article", undefined, undefined, "sample");
    make("h3", `Sample ${first.sample}, class ${first.label}`, box);
    if (first.places) make("p", first.places, box, "caption");
    const row = make("div", undefined, box, "pictures");
    const original = make("figure", undefined, row);
    const clean = picture(first.images[0], "original", original);
    caption("original", original);
    for (const entry of group) {
      const name = `${entry.attack} on ${entry.model}`;
      const arrow = `${entry.clean} → ${entry.prediction}`;
      const pair = make("figure", undefined, row, "pair");
      const image = picture(entry.images[1], `${name}: ${arrow}`, pair);
      const canvas = make("canvas", undefined, pair);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `difference of ${name}`);
      caption(`${name}: ${arrow}`, pair);
      const facts = [entry.outcome, entry.distance];
      if (entry.oracle !== undefined) facts.push(`oracle: ${entry.oracle}`);
      if (entry.accepted !== undefined) facts.push(entry.accepted ? "accepted" : "rejected");
      make("small", facts.join(", "), pair);
      Promise.all([clean.decode(), image.decode()]).then(() => difference(clean, image, canvas));
    }
    return box;
  };
  const pixels = (image) => {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  };
  const difference = (clean, changed, canvas) => {
    const a = pixels(clean), b = pixels(changed);
    const values = [];
    for (let i = 0; i < a.data.length; i += 4) {
      values.push((b.data[i] + b.data[i + 1] + b.data[i + 2] - a.data[i] - a.data[i + 1] - a.data[i + 2]) / 3);
    }
    const largest = Math.max(1, ...values.map(Math.abs));
    values.forEach((value, k) => {
      const share = value / largest, fade = 255 * (1 - Math.abs(share));
      a.data.set(share > 0 ? [255, fade, fade, 255] : [fade, fade, 255, 255], 4 * k);
    });
    canvas.width = a.width;
    canvas.height = a.height;
    canvas.getContext("2d").putImageData(a, 0, 0);
  };
  form.addEventListener("change", choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", show);
  choose();
})();
