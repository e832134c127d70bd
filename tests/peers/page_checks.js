// What axe would ask of the status page: returns a list of complaints, empty when there are none.
(() => {
  const complaints = [];
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const visible = (element) => element.checkVisibility({ visibilityProperty: true });

  // contrast: WCAG 2.2, 1.4.3 (AA)
  const numbers = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b]
    .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = numbers(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
      if (color[3] !== 0) complaints.push(`half-transparent background of <${at.tagName}>: contrast unknown`);
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !visible(element) || element.closest("script, noscript, template")) continue;
    texts += 1;
    const style = getComputedStyle(element);
    const [light, dark] = [numbers(style.color), ground(element)].map(luminance).sort((a, b) => b - a);
    const size = parseFloat(style.fontSize);
    const needed = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < needed) complaints.push(`contrast ${ratio.toFixed(2)} of "${walker.currentNode.data.trim().slice(0, 40)}"`);
    if (size < 12) complaints.push(`${size}px: "${walker.currentNode.data.trim().slice(0, 40)}"`);
  }
  if (texts < 40) complaints.push(`only ${texts} texts were looked at`);

  // structure
  if (document.documentElement.lang !== "en") complaints.push("no language");
  if (!document.title) complaints.push("no title");
  for (const tag of ["main", "header", "footer", "h1"]) {
    if (all(tag).length !== 1) complaints.push(`${all(tag).length} <${tag}>`);
  }
  let level = 0;
  for (const heading of all("h1, h2, h3, h4").filter(visible)) {
    const its = Number(heading.tagName[1]);
    if (its > level + 1) complaints.push(`heading skips to ${heading.tagName}: ${heading.textContent}`);
    if (!heading.textContent.trim()) complaints.push("an empty heading");
    level = its;
  }
  const ids = all("[id]").map((element) => element.id);
  if (new Set(ids).size !== ids.length) complaints.push("an id is there twice");
  for (const element of all("[aria-labelledby]")) {
    if (!document.getElementById(element.getAttribute("aria-labelledby"))) complaints.push("aria-labelledby leads nowhere");
  }
  for (const table of all("table").filter(visible)) {
    if (!table.caption || !table.caption.textContent.trim()) complaints.push("a table without a caption");
    const heads = Array.from(table.querySelectorAll("thead th"));
    if (!heads.length || heads.some((head) => head.scope !== "col" || !head.textContent)) complaints.push("a table without heads");
    for (const row of table.tBodies[0].rows) {
      if (row.cells.length !== heads.length) complaints.push("a row is not as long as its heads");
      Array.from(row.cells).forEach((cell, i) => {
        if (cell.dataset.label !== heads[i].textContent) complaints.push(`a cell of ${heads[i].textContent} says ${cell.dataset.label}`);
      });
    }
  }
  for (const image of all("svg, img, meter")) {
    if (visible(image) && !image.getAttribute("aria-label") && !image.getAttribute("aria-labelledby")) {
      complaints.push(`<${image.tagName}> without a name`);
    }
  }
  for (const control of all("a, button, input")) {
    if (visible(control) && !control.textContent.trim()) complaints.push(`<${control.tagName}> without a name`);
  }
  for (const element of all("[tabindex]")) if (element.tabIndex > 0) complaints.push("a positive tabindex");

  // room: no sideways scrolling, nothing cut off, targets large enough for a thumb (WCAG 2.5.8 asks for 24)
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) {
    complaints.push(`${document.documentElement.scrollWidth} px wide in a window of ${width}`);
  }
  for (const element of all("main *").filter((each) => visible(each) && !each.closest("thead"))) {     // a phone clips heads
    const box = element.getBoundingClientRect();
    if (box.right > width + 1 && box.width > 1) complaints.push(`<${element.tagName}> reaches to ${box.right}`);
  }
  for (const control of all("a, button").filter(visible)) {
    const box = control.getBoundingClientRect();
    if (box.bottom > 0 && box.left >= 0 && (box.height < 24 || box.width < 24)) {
      complaints.push(`"${control.textContent}" is ${box.width} by ${box.height}`);
    }
  }
  return complaints;
})()
