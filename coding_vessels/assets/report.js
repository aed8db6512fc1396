'use strict';
const root = document.documentElement, one = id => document.getElementById(id);
const all = (what, where = document) => [...where.querySelectorAll(what)];

// Words: English stands in the page; KO has the rest.
const KO = {{ korean | tojson }};
const LANGUAGE = 'coding_vessels:language';
let language = read(LANGUAGE) || (navigator.language.startsWith('ko') ? 'ko' : 'en');

function read(key) { try { return localStorage.getItem(key); } catch { return null; } }
function write(key, value) { try { localStorage.setItem(key, value); } catch { one('unsaved').hidden = false; } }

// A sentence with places left open, {}, stands for all that differ there; what fills them is translated as well.
const OPEN = Object.entries(KO).filter(([english]) => english.includes('{}')).map(([english, korean]) =>
  [new RegExp('^' + english.split('{}').map(part => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('(.+)') + '$', 's'), korean]);

function korean(text) {
  if (KO[text]) return KO[text];
  for (const [pattern, said] of OPEN) {
    const parts = text.match(pattern)?.slice(1).map(korean);
    if (parts) return said.replace(/\{(\d)\}/g, (_, number) => parts[number - 1]);
  }
  return text;
}

function t(text, values = {}) {
  const said = language === 'ko' ? korean(text) : text;
  return said.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function translate(where = document) {
  for (const part of all('[data-t]', where)) {
    part.dataset.t ||= part.textContent.trim();
    part.textContent = t(part.dataset.t);
  }
  for (const part of all('[data-label]', where)) part.setAttribute('aria-label', t(part.dataset.label));
}

function speak(chosen) {
  language = root.lang = one('language').value = chosen;
  translate();
  filter();
  nameNeighbours();
  if (opened) recall(opened);
}

// The list of patients: sorted, filtered, walked through.
const rows = () => all('#list tr'), listed = () => rows().filter(row => !row.hidden);
let opened = null, last = null, kept = 0;               // the patient on show, the one before, how far the list was scrolled

function sort(head) {
  const column = head.cellIndex, number = head.dataset.kind === 'number';
  const down = head.ariaSort ? head.ariaSort === 'ascending' : number;
  const key = row => row.cells[column].dataset.key;
  const compare = (a, b) => number ? key(a) - key(b) : key(a).localeCompare(key(b), undefined, {numeric: true});
  for (const other of all('#patients th')) other.removeAttribute('aria-sort');
  head.ariaSort = down ? 'descending' : 'ascending';
  one('list').append(...rows().sort((a, b) => down ? compare(b, a) : compare(a, b)));
}

function filter() {
  const search = one('search').value.trim().toLowerCase();
  const wanted = all('#filters input:checked').map(box => box.value);
  for (const row of rows()) row.hidden = !row.dataset.index.toLowerCase().includes(search) || wanted.some(name => row.dataset[name] === '0');
  one('count').textContent = t('{n} of {m} patients', {n: listed().length, m: rows().length});
}

function neighbour(step, flagged = false) {
  const here = opened ? opened.id : document.activeElement.closest('#list tr')?.dataset.patient;
  const order = rows(), at = order.findIndex(row => row.dataset.patient === here);
  const rest = step > 0 ? order.slice(at + 1) : order.slice(0, Math.max(at, 0)).reverse();
  return rest.find(row => !row.hidden && (!flagged || row.dataset.flagged !== '0'));
}

function go(row, open = opened) {
  if (!row) return;
  if (!open) return row.querySelector('a').focus();
  location.hash = row.dataset.patient;
  route();                                              // at once: the next key may come before the event

}

function nameNeighbours() {                             // the links to the neighbours follow the list
  if (!opened) return;
  for (const [what, step, text] of [['before', -1, 'Previous: {index}'], ['after', 1, 'Next: {index}']]) {
    const link = opened.querySelector(`.${what}`), row = neighbour(step);
    link.hidden = !row;
    if (row) { link.href = `#${row.dataset.patient}`; link.textContent = t(text, {index: row.dataset.index}); }
  }
}

// A patient's section waits in a template until it is wanted: a thousand of them at once would be slow.
function section(name) {
  const waiting = one(`of-${name}`);
  if (!waiting || one(name)) return waiting && one(name);
  const patient = waiting.content.firstElementChild.cloneNode(true);
  one('shown').append(patient);
  translate(patient);
  recall(patient);
  return patient;
}

function bring() {                                      // on paper: the patient on show, or all in the list
  if (!opened) for (const row of listed()) for (const picture of all('img', section(row.dataset.patient))) picture.loading = 'eager';
}

function tidy() { if (!opened) one('shown').replaceChildren(); }

function route() {
  const name = location.hash.slice(1), patient = section(name), target = one(name), was = opened;
  if (patient && patient === was) return;
  if (!was) kept = scrollY;
  was?.remove();
  viewer.close();
  opened = patient;
  root.classList.toggle('reading', !!patient);
  if (patient) show(patient);
  else if (was) back();
  else target?.scrollIntoView();
}

function show(patient) {
  patient.classList.add('open');
  last = patient.id;
  nameNeighbours();
  attend(patient);
  patient.focus({preventScroll: true});
  scrollTo(0, 0);
}

function back() {                                       // to where one was in the list
  scrollTo(0, kept);
  rows().find(row => row.dataset.patient === last)?.querySelector('a').focus();
}

// Attention: '' nothing, '*' all findings, or a place; kept from one patient to the next.
let attention = '';

function attend(patient) {
  const choices = all('.attention input', patient), has = choices.some(choice => choice.value === attention);
  const chosen = has ? attention : '*';
  for (const choice of choices) choice.checked = choice.value === chosen;
  paint(patient, chosen, false);
  if (viewer.open) {
    one('looked').value = chosen;
    paint(viewer, chosen, one('marks').checked);
  }
}

function paint(where, chosen, marks) {
  for (const part of all('[data-location]', where)) {
    const found = 'flagged' in part.dataset, mark = part.classList.contains('peak');
    const on = chosen === '*' ? found : part.dataset.location === chosen;
    part.classList.toggle('shown', on || mark && found && marks);
  }
}

// The viewer: frontal and lateral of one injection.
const viewer = one('viewer'), FULL = {window: 256, level: 128};
const views = all('.pane').map(pane => ({pane, x: 0, y: 0, zoom: 1}));
let injection = '', active = views[0], pull = null, ruled = null;          // the pane whose line is read out

function view(wanted, plane = 'A') {
  injection = wanted;
  one('viewer-title').textContent = `${opened.dataset.index} ${injection}`;
  const looked = one('looked');
  looked.replaceChildren(...all('.attention input', opened).map(
    choice => new Option(choice.parentElement.textContent.trim(), choice.value)));
  looked.disabled = !looked.length;
  if (!viewer.open) viewer.showModal();
  views.forEach(fill);
  active = views['AB'.indexOf(plane)];
  active.pane.focus();
  attend(opened);
}

const captionOf = figure => figure.querySelector('figcaption').innerText;

function fill(which, number) {
  const figure = opened.querySelector(`figure[data-view="${injection}-${'AB'[number]}"]`), frame = figure.querySelector('.frame');
  const stage = which.pane.querySelector('.stage');
  stage.replaceChildren(...[...frame.children].map(part => part.cloneNode(true)));
  which.pane.querySelector('b').textContent = captionOf(figure);
  which.pane.setAttribute('aria-label', captionOf(figure));
  const ruler = document.createElementNS('http://www.w3.org/2000/svg', 'svg'), [width, height] = figure.dataset.pixels.split(' ').map(Number);
  ruler.setAttribute('class', 'ruler');
  ruler.setAttribute('viewBox', `0 0 ${width} ${height}`);
  ruler.setAttribute('preserveAspectRatio', 'none');
  stage.append(ruler);
  if (ruled === which) ruled = null;
  Object.assign(which, {figure, ruler, pixels: [width, height], line: null, film: (figure.dataset.film || '').split(' '), read: +figure.dataset.read});
  thread(which);
  tell();
  fit(which);
}

// A run: its frames one by one, the one that was read first.
function thread(which) {
  const slider = which.pane.querySelector('.film');
  which.pane.querySelector('.roll').hidden = which.film.length < 2;
  slider.max = which.film.length;
  which.pane.classList.remove('elsewhere');              // of the injection before
  roll(which, which.read + 1);
}

function roll(which, number) {
  const {film, pane, read} = which, count = film.length, chosen = Math.min(count, Math.max(1, number));
  if (count < 2) return;
  pane.querySelector('.film').value = chosen;
  pane.querySelector('.stage img').src = film[chosen - 1];
  pane.classList.toggle('elsewhere', chosen - 1 !== read);
  const told = t('{n} of {m}', {n: chosen, m: count}) + (chosen - 1 === read ? `, ${t('the one that was read')}` : '');
  pane.querySelector('.roll output').textContent = told;
  pane.querySelector('.film').setAttribute('aria-valuetext', told);
}

function fit(which) {                                   // the whole frame, in the pane's middle
  const {clientWidth: width, clientHeight: height} = which.pane, picture = which.pane.querySelector('img');
  const ratio = picture ? picture.naturalWidth / picture.naturalHeight || 1 : width / height;
  which.width = Math.min(width, height * ratio);
  which.height = which.width / ratio;
  Object.assign(which, {zoom: 1, x: (width - which.width) / 2, y: (height - which.height) / 2});
  lay(which);
}

function lay({pane, x, y, zoom, width, height}) {
  const stage = pane.querySelector('.stage');
  Object.assign(stage.style, {width: `${width}px`, height: `${height}px`, transform: `translate(${x}px, ${y}px) scale(${zoom})`});
  stage.style.setProperty('--zoom', zoom);
}

function enlarge(which, factor, x = which.pane.clientWidth / 2, y = which.pane.clientHeight / 2) {
  const zoom = Math.min(12, Math.max(1, which.zoom * factor)), by = zoom / which.zoom;
  Object.assign(which, {zoom, x: x - by * (x - which.x), y: y - by * (y - which.y)});
  lay(which);
  if (zoom === 1) fit(which);
}

function grey() {                                       // window and level, as shares of 256 grey levels
  const width = one('width').value / 256, level = one('level').value / 256, sign = one('invert').checked ? -1 : 1;
  for (const part of all('#window feComponentTransfer > *')) {
    part.setAttribute('slope', sign / width);
    part.setAttribute('intercept', 0.5 - sign * level / width);
  }
}

function reset() {
  one('width').value = FULL.window;
  one('level').value = FULL.level;
  one('invert').checked = false;
  grey();
  views.forEach(fit);
}

// A line in pixels of the frame; what it measures in millimetres follows from the file's scale or the reader's.
const scaleOf = figure => readings[opened.dataset.index]?.scales?.[figure.dataset.view]?.mm || +figure.dataset.mm || 0;
const lengthOf = ([x1, y1, x2, y2]) => Math.hypot(x2 - x1, y2 - y1);

function place({pane, x, y, zoom, width, height, pixels}, event) {
  const box = pane.getBoundingClientRect();
  return [(event.clientX - box.left - x) / zoom / width * pixels[0], (event.clientY - box.top - y) / zoom / height * pixels[1]];
}

function draw(which, line) {
  if (!which.pixels[0]) return;                         // not filmed
  which.line = line;
  ruled = which;
  const [x1, y1, x2, y2] = line, mark = document.createElementNS('http://www.w3.org/2000/svg', 'line');
  for (const [name, value] of Object.entries({x1, y1, x2, y2})) mark.setAttribute(name, value);
  which.ruler.replaceChildren(mark);
  tell();
}

function tell(refused = '') {
  one('refused').textContent = refused && t(refused);
  one('calibrate').disabled = !ruled;
  if (!ruled) { one('measured').textContent = ''; return; }
  const {line, figure} = ruled, own = readings[opened.dataset.index]?.scales?.[figure.dataset.view], mm = scaleOf(figure);
  const source = own ? t('your scale') : t(figure.dataset.scale || '');
  one('measured').textContent = `${figure.dataset.view}: ${lengthOf(line).toFixed(1)} ${t('pixels')}` + (mm ? `, ${(mm * lengthOf(line)).toFixed(1)} mm (${source})` : '');
}

function nudge(right, down, event) {                    // by keyboard: the line's end, or with Shift its beginning
  const [width, height] = active.pixels, line = [...active.line || [width / 2 - 20, height / 2, width / 2 + 20, height / 2]];
  const at = event.shiftKey ? 0 : 2;
  line[at] += right;
  line[at + 1] += down;
  draw(active, line);
}

function measure() {
  const on = one('ruler').checked;
  one('measuring').hidden = !on;
  if (!on) for (const which of views) { which.line = ruled = null; which.ruler.replaceChildren(); }
  tell();
  views.filter(({zoom}) => zoom === 1).forEach(fit);
}

function calibrate() {
  const {figure, line} = ruled, text = one('known').value.trim().replace(',', '.'), known = Number(text), mm = known / lengthOf(line);
  if (text && !(mm >= 0.01 && mm <= 10)) return tell('Write the line\'s length in millimetres; a pixel is 0.01 to 10 mm.');
  const own = readingOf(opened).scales ||= {};
  if (text) own[figure.dataset.view] = {mm, known};
  else delete own[figure.dataset.view];
  save();
  recall(opened);
  tell();
  for (const {pane, figure} of views) pane.querySelector('b').textContent = captionOf(figure);
}

function drag(event) {
  if (!pull) return;
  if (pull.from) return draw(active, [...pull.from, ...place(active, event)]);
  const [right, down] = [event.clientX - pull.x, event.clientY - pull.y];
  Object.assign(pull, {x: event.clientX, y: event.clientY});
  if (pull.window) {
    one('width').valueAsNumber += right;
    one('level').valueAsNumber += down;
    grey();
  } else { active.x += right; active.y += down; lay(active); }
}

function turn(step) {                                   // to the next injection
  const order = [...new Set(all('figure', opened).map(figure => figure.dataset.view.slice(0, 2)))];
  view(order[(order.indexOf(injection) + step + order.length) % order.length]);
}

for (const which of views) {
  which.pane.addEventListener('wheel', event => {
    const box = which.pane.getBoundingClientRect();
    event.preventDefault();
    active = which;
    enlarge(which, event.deltaY < 0 ? 1.2 : 1 / 1.2, event.clientX - box.left, event.clientY - box.top);
  }, {passive: false});
  which.pane.addEventListener('focus', () => active = which);
  which.pane.addEventListener('contextmenu', event => event.preventDefault());
  which.pane.addEventListener('pointerdown', event => {
    if (event.target.closest('.roll')) return;
    active = which;
    pull = {x: event.clientX, y: event.clientY, window: event.button === 2};
    if (one('ruler').checked && !event.button) pull.from = place(which, event);
    which.pane.setPointerCapture(event.pointerId);
  });
  which.pane.addEventListener('pointermove', drag);
  which.pane.addEventListener('lostpointercapture', () => pull = null);
}

// What the reader thinks: by patient and place 'accepted', 'rejected' or 'added', and a note.
const STORE = `coding_vessels:${document.body.dataset.content}`;
const readings = JSON.parse(read(STORE) || '{}');

const readingOf = patient => readings[patient.dataset.index] ||= {places: {}, note: '', scales: {}};
function save() { write(STORE, JSON.stringify(readings)); }

function decide(patient, place, decision) {
  if (decision) readingOf(patient).places[place] = decision;
  else delete readingOf(patient).places[place];
  save();
  recall(patient);
}

function recall(patient) {                              // what was decided before
  const {places, note, scales} = readings[patient.dataset.index] || {places: {}, note: ''};
  for (const choice of all('.decision input', patient)) choice.checked = choice.value === (places[choice.dataset.place] || '');
  const added = Object.keys(places).filter(place => places[place] === 'added');
  patient.querySelector('.added').replaceChildren(...added.map(listing));
  patient.querySelector('.note').value = note;
  for (const part of all('.own', patient)) {
    const own = scales?.[part.closest('figure').dataset.view], {length, width} = part.dataset;
    part.textContent = own ? `; ${(own.mm * length).toFixed(1)} x ${(own.mm * width).toFixed(1)} mm (${t('your scale')})` : '';
  }
  offer();
}

function offer() { one('scales').hidden = !Object.values(readings).some(({scales}) => Object.keys(scales || {}).length); }

function listing(place) {
  const item = document.createElement('li'), button = document.createElement('button');
  item.textContent = place;
  Object.assign(button, {type: 'button', className: 'remove', value: place, textContent: t('remove')});
  button.dataset.t = 'remove';
  item.append(button);
  return item;
}

const quoted = cells => cells.map(cell => `"${String(cell).replaceAll('"', '""')}"`).join(',');

function csv() {
  const lines = ['Index,location,decision,note'];
  for (const [index, {places, note}] of Object.entries(readings)) {
    for (const [place, decision] of Object.entries(places)) lines.push(quoted([index, place, decision, '']));
    if (note) lines.push(quoted([index, '', '', note]));
  }
  return lines.join('\r\n') + '\r\n';
}

function scalesAsCsv() {                                // what `predict` reads beside the cohort's table
  const lines = ['Index,view,mm,source'];
  for (const {content} of all('template'))
    for (const {dataset: {view, mm, scale}, parentElement} of all('figure', content)) {
      const {index} = parentElement.closest('section').dataset, own = readings[index]?.scales?.[view];
      if (own) lines.push(quoted([index, view, own.mm.toFixed(5), `a line of ${own.known} mm on the frame`]));
      else if (mm) lines.push(quoted([index, view, mm, scale]));
    }
  return lines.join('\r\n') + '\r\n';
}

function download(name, content) {                      // the mark in front tells spreadsheets that it is UTF-8
  const link = document.createElement('a');
  link.href = 'data:text/csv;charset=utf-8,' + encodeURIComponent('\ufeff' + content);
  link.download = name;
  link.click();
}

// What is clicked, changed, typed.
const CLICKS = {
  '#patients th button': button => sort(button.closest('th')),
  'button.frame': frame => view(...frame.closest('figure').dataset.view.split('-')),
  '#nearer': () => enlarge(active, 1.2), '#farther': () => enlarge(active, 1 / 1.2),
  '#reset': reset, '#close': () => viewer.close(), '#earlier': () => turn(-1), '#later': () => turn(1),
  '#export': () => download('readings.csv', csv()), '#scales': () => download('scales.csv', scalesAsCsv()), '#calibrate': calibrate,
  '.add': button => {
    const chosen = button.parentElement.querySelector('select').value;
    if (chosen) decide(opened, chosen, 'added');
  },
  '.remove': button => decide(opened, button.value, ''),
};

const CHANGES = {
  '#language': ({value}) => { write(LANGUAGE, value); speak(value); },
  '#filters input': filter,
  '.attention input, #looked': ({value}) => { attention = value; attend(opened); },
  '#marks': () => attend(opened), '#width, #level, #invert': grey, '#ruler': measure,
  '.decision input': choice => decide(opened, choice.dataset.place, choice.value),
  '.note': note => { readingOf(opened).note = note.value; save(); },
};

const KEYS = {
  Escape: () => { if (opened) location.hash = 'patients'; }, j: () => go(neighbour(1)), k: () => go(neighbour(-1)), n: () => go(neighbour(1, true), true),
  ArrowRight: () => opened && go(neighbour(1)), ArrowLeft: () => opened && go(neighbour(-1)),
  ArrowDown: () => !opened && go(neighbour(1)), ArrowUp: () => !opened && go(neighbour(-1)),
};

const toggle = id => { one(id).click(); };
const VIEWER_KEYS = {
  '+': () => enlarge(active, 1.2), '=': () => enlarge(active, 1.2), '-': () => enlarge(active, 1 / 1.2), 0: reset,
  i: () => toggle('invert'), m: () => toggle('marks'), l: () => toggle('ruler'), ArrowRight: () => turn(1), ArrowLeft: () => turn(-1),
  ',': () => step(-1), '.': () => step(1),
};
const step = by => roll(active, +active.pane.querySelector('.film').value + by);
const NUDGES = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]};

function listen(kind, what) {
  document.addEventListener(kind, event => {
    for (const [selector, act] of Object.entries(what)) {
      const found = event.target.closest(selector);
      if (found) act(found);
    }
  });
}

function press(event) {
  const nudged = viewer.open && one('ruler').checked && NUDGES[event.key];
  const sliding = event.target.matches('[type=range]') && /Arrow|Home|End|Page/.test(event.key);
  const act = nudged ? () => nudge(...nudged, event) : (viewer.open ? VIEWER_KEYS : KEYS)[event.key];
  const typing = sliding || event.target.matches('input:not([type=checkbox], [type=range]), select, textarea');
  if (event.key === 'Enter' && event.target.id === 'known' && ruled) return calibrate();
  const listing = opened || viewer.open || event.target.closest('#list') || !event.key.startsWith('Arrow');
  if (!act || typing || !listing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  act();
}

listen('click', CLICKS);
listen('change', CHANGES);
listen('input', {'#search': filter, '#width, #level': grey, '.note': CHANGES['.note'],
  '.film': slider => { active = views.find(({pane}) => pane.contains(slider)); roll(active, slider.valueAsNumber); }});
document.addEventListener('keydown', press);
addEventListener('hashchange', route);
document.addEventListener('error', ({target}) => { if (one('lost') && target.matches?.('.frame img')) one('lost').hidden = false; }, true);
addEventListener('beforeprint', bring);
addEventListener('afterprint', tidy);
addEventListener('resize', () => viewer.open && views.forEach(fit));
addEventListener('load', () => opened && scrollTo(0, 0));
history.scrollRestoration = 'manual';
root.classList.add('js');
speak(language);
offer();
route();
