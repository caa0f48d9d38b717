// Making and changing elements. Text goes in as text nodes only, so a name that looks like markup is shown as it is.

const SVG = 'http://www.w3.org/2000/svg';

// el('p', {class: 'note', on: {click}}, 'text', child): attributes by their names; null, undefined and false are left out.
export function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === 'on') {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else {
      setAttr(node, name, value);
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Writes only what changes: a selection or a screen reader's place in the text stays where it is.
export function setText(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

export function setAttr(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
    return;
  }
  const wanted = value === true ? '' : String(value);
  if (node.getAttribute(name) !== wanted) node.setAttribute(name, wanted);
}

export function setClass(node, name) {
  if (node.getAttribute('class') !== name) node.setAttribute('class', name);
}

export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

let ids = 0;
export function id(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}
