// The viewer page of ovrs. OpenLayers draws; the local server gives tiles in the map's own pixel grid.
import Map from 'ol/Map.js';
import View from 'ol/View.js';
import TileLayer from 'ol/layer/Tile.js';
import XYZ from 'ol/source/XYZ.js';
import TileGrid from 'ol/tilegrid/TileGrid.js';
import Projection from 'ol/proj/Projection.js';
import ScaleLine from 'ol/control/ScaleLine.js';
import {defaults as controls} from 'ol/control/defaults.js';
import {getRenderPixel} from 'ol/render.js';
import './viewer.css';

const byId = (id) => document.getElementById(id);
const hidden = new Set();

function element(tag, text, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  return made;
}

async function start() {
  const maps = await (await fetch('map.json')).json();
  const facts = maps.map;
  const [height, width] = facts.shape;
  const extent = [0, -height, width, 0]; // one unit is one pixel of the full resolution
  const projection = new Projection({code: 'ovrs-pixels', units: 'm', extent, metersPerUnit: facts.pixel_m});
  const resolutions = Array.from({length: facts.levels}, (_, z) => 2 ** (facts.levels - 1 - z));
  const tileGrid = new TileGrid({extent, origin: [0, 0], resolutions, tileSize: facts.tile});

  const address = (name, layer) => {
    const query = layer === 'classes' && hidden.size ? `?hide=${[...hidden].sort().join(',')}` : '';
    return ([z, x, y]) => `tiles/${name}/${layer}/${facts.levels - 1 - z}/${x}/${y}${query}`;
  };
  const source = (name, layer) => new XYZ({
    projection, tileGrid, interpolate: layer !== 'classes', wrapX: false, transition: 0, tileUrlFunction: address(name, layer),
  });
  const image = new TileLayer({source: facts.image ? source('map', 'image') : undefined});
  const choices = [['classes', 'map', 'Classes'], ['confidence', 'map', 'Confidence']];
  if (maps.before) choices.push(['classes', 'before', `Before: ${maps.before.name}`]);
  if (facts.image) choices.push([null, null, 'Image alone']);
  const over = choices.map(([layer, name], i) => layer && new TileLayer({source: source(name, layer), visible: i === 0, opacity: 0.7}));
  const map = new Map({
    target: 'map',
    layers: [image, ...over.filter(Boolean)],
    controls: controls().extend([new ScaleLine()]),
    view: new View({projection, extent, showFullExtent: true, maxResolution: Math.max(...resolutions) * 4, minResolution: 1 / 16}),
  });
  map.getView().fit(extent, {padding: [10, 10, 10, 10]});

  byId('title').textContent = facts.name;
  byId('model').textContent = facts.model;
  choices.forEach(([, , title], i) => {
    const label = element('label');
    const radio = element('input', undefined, {type: 'radio', name: 'layer', checked: i === 0, value: String(i)});
    radio.addEventListener('change', () => over.forEach((layer, k) => layer && layer.setVisible(k === i)));
    label.append(radio, ' ', title);
    byId('layers').append(label);
  });
  byId('opacity').addEventListener('input', (event) => over.forEach((layer) => layer && layer.setOpacity(event.target.value / 100)));

  const swipe = byId('swipe');
  const split = byId('split');
  swipe.addEventListener('change', () => { split.disabled = !swipe.checked; map.render(); });
  split.addEventListener('input', () => map.render());
  over.filter(Boolean).forEach((layer) => {
    layer.on('prerender', (event) => {
      const context = event.context;
      context.save();
      if (!swipe.checked) return;
      const [w, h] = map.getSize();
      const x = w * split.value / 100;
      const corners = [[0, 0], [x, 0], [x, h], [0, h]].map((p) => getRenderPixel(event, p));
      context.beginPath();
      corners.forEach(([px, py], i) => (i ? context.lineTo(px, py) : context.moveTo(px, py)));
      context.closePath();
      context.clip();
    });
    layer.on('postrender', (event) => event.context.restore());
  });

  facts.classes.forEach((entry, index) => {
    const item = element('li');
    const label = element('label');
    const box = element('input', undefined, {type: 'checkbox', checked: true});
    box.addEventListener('change', () => {
      if (box.checked) hidden.delete(index); else hidden.add(index);
      over.forEach((layer, i) => { // a new key, or OpenLayers would show the tiles it has
        const [kind, name] = choices[i];
        if (kind === 'classes') layer.getSource().setTileUrlFunction(address(name, kind), `hide ${[...hidden].sort()}`);
      });
    });
    const colour = element('span', undefined, {className: 'colour'});
    colour.style.background = entry.colour;
    label.append(box, colour, entry.name);
    item.append(label, element('span', `${entry.hectares.toFixed(2)} ha`, {className: 'area'}));
    byId('legend').append(item);
  });

  map.on('singleclick', async (event) => {
    const col = Math.floor(event.coordinate[0]);
    const row = Math.floor(-event.coordinate[1]);
    const answer = await fetch(`pixel/${row}/${col}`);
    const found = answer.ok ? await answer.json() : {};
    const panel = byId('pixel');
    panel.replaceChildren();
    const [a, b, c, d, e, f] = facts.transform;
    panel.append(element('p', `row ${row}, column ${col}; ${(a * (col + 0.5) + b * (row + 0.5) + c).toFixed(2)}, ${(d * (col + 0.5) + e * (row + 0.5) + f).toFixed(2)} (${facts.crs ? `EPSG:${facts.crs}` : 'no CRS'})`));
    for (const [name, pixel] of Object.entries(found)) {
      if (!pixel) continue;
      const title = name === 'before' ? 'before: ' : '';
      panel.append(element('p', pixel.class ? `${title}${pixel.class}, confidence ${pixel.confidence.toFixed(2)}` : `${title}no data`, {className: 'answer'}));
      if (pixel.scores) {
        const list = element('ul', undefined, {className: 'scores'});
        Object.entries(pixel.scores).sort((p, q) => q[1] - p[1]).forEach(([key, value]) => list.append(element('li', `${key} ${value.toFixed(2)}`)));
        panel.append(list);
      }
    }
  });
  map.once('rendercomplete', () => document.body.classList.add('ready'));
}

start();
