'use strict';
(() => {
  const SHOWN = 20;          // services that are drawn before somebody asks for more
  const MORE = 50;           // and how many then
  const TOTALS = 150, OF_SERVICE = 60;
  const OPEN = 32;           // services whose backends are told at once: the daemon tells no more
  const $ = (selector, root = document) => root.querySelector(selector);
  const SVG = 'http://www.w3.org/2000/svg';

  // ---- elements: text is always text, so a name can be anything ----
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === true) element.setAttribute(name, '');
      else if (value !== false && value != null) element.setAttribute(name, value);
    }
    element.append(...children.filter(child => child != null && child !== false));
    return element;
  };
  const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };

  // ---- figures ----
  const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
  const short = value => {
    if (value < 10 && value % 1) return [value.toFixed(1), ''];
    for (const [limit, unit] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e4, 'k']]) {
      if (value >= limit) {
        const scaled = value / (unit === 'k' ? 1e3 : limit);
        return [scaled >= 100 ? scaled.toFixed(0) : scaled.toFixed(1), unit];
      }
    }
    return [whole.format(value), ''];
  };
  const rate = (value, unit) => { const [number, scale] = short(value); return [number, scale ? `${scale}${unit.trim()}` : unit.trim()]; };
  const plain = value => short(value).join('\u202f').trim();
  const duration = seconds => {
    const d = Math.floor(seconds / 86400), h = Math.floor(seconds / 3600) % 24, m = Math.floor(seconds / 60) % 60;
    return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min` : `${Math.floor(seconds)} s`;
  };
  const clock = seconds => {
    const at = new Date(seconds * 1000), two = n => String(n).padStart(2, '0');
    const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
    return at.toDateString() === new Date().toDateString() ? time : `${two(at.getDate())}.${two(at.getMonth() + 1)}. ${time.slice(0, 5)}`;
  };

  // ---- plots: an area under a line, from zero ----
  const draw = (svg, values, slots) => {
    const width = 300, height = 60;
    if (!svg.firstChild) {
      svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
      svg.setAttribute('preserveAspectRatio', 'none');
      for (const kind of ['area', 'curve']) {
        const path = document.createElementNS(SVG, 'path');
        path.setAttribute('class', kind);
        svg.append(path);
      }
    }
    const most = Math.max(1, ...values) * 1.12, first = slots - values.length;
    const points = values.map((value, n) =>
      `${((first + n) / (slots - 1) * width).toFixed(1)} ${(height - 1.5 - value / most * (height - 4)).toFixed(1)}`);
    const line = points.length > 1 ? `M${points.join('L')}` : '';
    svg.firstChild.setAttribute('d', line && `${line}L${width} ${height}L${(first / (slots - 1) * width).toFixed(1)} ${height}Z`);
    svg.lastChild.setAttribute('d', line);
  };
  const push = (values, value, most) => { values.push(value); if (values.length > most) values.shift(); };

  // ---- what is known ----
  const totals = { live: [], opened: [], packets: [], bits: [] };
  const past = new Map();        // packets a second of a service, by its key
  const rows = new Map();        // what is drawn of a service, by its key
  const open = new Set();        // names of services whose backends are shown
  let latest = null, shown = SHOWN, backendsBefore = new Map(), source = null;
  const keyOf = service => `${service.name} ${service.endpoint}`;

  // ---- the whole ----
  const STATE = {
    error: ['bad', 'not served as configured'], 'fail-open': ['bad', 'fail-open'], full: ['bad', 'full'], 'no-backend': ['bad', 'no backend'],
    degraded: ['warning', 'degraded'], removed: ['', 'removed'], ok: ['good', 'ok'],
  };
  const showVerdict = page => {
    const findings = [];
    if (page.config.error) findings.push(['bad', `The latest configuration was refused: ${page.config.error.split('\n')[0]}`]);
    if (!page.attachments.length) findings.push(['bad', 'The program is attached to no interface: nothing is forwarded.']);
    for (const one of page.attachments) if (one.mode !== 'native') findings.push(['warning', `${one.interface} runs the program in generic mode, which is slower.`]);
    for (const one of page.detached ?? []) findings.push(['bad', `The program is not attached to ${one.interface}: ${one.reason}`]);
    for (const one of page.closed_egress) findings.push(['bad', `Nothing leaves by ${one.interface}: ${one.reason}`]);
    for (const table of page.tables) if (table.fill === 'high') findings.push(['bad', `The IPv${table.version} flow table is over 70% full: raise its limit and restart the daemon.`]);
    if (page.evacuated) findings.push(['warning', 'This host is evacuated: no backend takes new flows until `tether undrain --all`.']);
    const services = n => `${n} service${n === 1 ? '' : 's'}`;
    const named = state => {
      const names = page.services.filter(service => service.state === state).map(service => service.name);
      return names.length > 3 ? services(names.length) : names.join(', ');
    };
    for (const [state, level, text] of [
      ['error', 'bad', 'not served as configured'],
      ['full', 'bad', 'every usable backend is at its max_connections, new connections are dropped'],
      ['no-backend', 'bad', 'no backend takes new flows'],
      ['fail-open', 'bad', 'fail-open, too few backends are usable and all active ones take new flows'],
      ['degraded', 'warning', 'some backends are not well'],
    ]) {
      // Of a host that is evacuated it is meant, and said above.
      if (page.evacuated && state === 'no-backend') continue;
      const names = named(state);
      if (names) findings.push([level, `${names}: ${text}.`]);
    }
    const level = findings.some(([level]) => level === 'bad') ? 'bad' : findings.length ? 'warning' : 'good';
    const said = level + JSON.stringify(findings);
    const verdict = $('#verdict');
    if (verdict.dataset.said === said) return;
    verdict.dataset.said = said;
    verdict.className = `verdict ${level}`;
    verdict.replaceChildren(
      make('strong', {}, level === 'good' ? 'All is well' : level === 'warning' ? 'Worth a look' : 'Something is wrong'),
      findings.length ? make('ul', {}, ...findings.map(([, text]) => make('li', {}, text))) : make('p', { class: 'error' }, `${services(page.services.length)}, every backend as it should be.`));
  };
  const showTiles = page => {
    const total = page.rates;
    for (const [id, [number, unit]] of Object.entries({
      live: [whole.format(total.live), ''], opened: rate(total.opened, '/s'), packets: rate(total.packets, '/s'), bits: rate(total.bits, 'bit/s'),
    })) {
      $(`#${id} .figure`).replaceChildren(number, make('small', {}, unit));
      draw($(`#${id} .plot`), totals[id], Math.max(30, totals[id].length));
    }
    $('#tables').replaceChildren(...page.tables.map(table => make('div', { class: 'gauge' },
      `IPv${table.version} table`,
      make('div', { class: 'bar' }, make('i', { class: table.fill, style: `width:${(table.used * 100).toFixed(2)}%` })),
      `${(table.used * 100).toFixed(table.used < .1 ? 1 : 0)}% of ${plain(table.capacity)}`)));
  };
  const showDrains = page => {
    $('#drains').hidden = !page.drains.length;
    $('#drains .list').replaceChildren(...page.drains.slice(0, SHOWN).map(drain => {
      const done = drain.most ? 1 - drain.left / drain.most : 1;
      return make('div', { class: drain.left ? 'drain' : 'drain done' },
        make('div', { class: 'name' }, make('b', {}, `${drain.service}/${drain.backend}`), drain.removed && make('span', { class: 'tag' }, 'removed'),
          make('div', { class: 'mono' }, drain.address)),
        make('div', { class: 'bar', role: 'progressbar', 'aria-label': `Drain of ${drain.service}/${drain.backend}`, 'aria-valuemin': 0, 'aria-valuemax': 100, 'aria-valuenow': Math.floor(done * 100) },
          make('i', { style: `width:${(done * 100).toFixed(1)}%` })),
        make('div', { class: 'left' }, make('b', {}, whole.format(drain.left)), ` of ${whole.format(drain.most)} left`,
          make('div', {}, `${whole.format(drain.active)} active · ${duration(page.at - drain.since)}`)));
    }));
  };
  const showEvents = page => {
    const list = $('#events ol'), last = page.events.length ? page.events[page.events.length - 1].number : -1;
    if (list.dataset.last === String(last)) return;
    list.dataset.last = last;
    list.replaceChildren(...page.events.slice().reverse().map(event => make('li', { class: event.level },
      make('time', { class: 'at', datetime: new Date(event.at * 1000).toISOString() }, clock(event.at)),
      make('p', {}, make('b', {}, event.subject), ` ${event.text}`))));
  };

  // ---- services ----
  const row = service => {
    const details = make('details', { 'data-service': service.name },
      make('summary', {},
        make('div', { class: 'name' }, make('b', {}, service.name), make('span', { class: 'tag' }), make('div', { class: 'mono' }, `${service.endpoint} · ${service.mode}`)),
        make('div', { class: 'share' }, make('span', {}), make('div', { class: 'bar', 'aria-hidden': 'true' })),
        make('div', { class: 'cell live' }, '', make('span', {}, 'live flows')),
        make('div', { class: 'cell rate' }, '', make('span', {}, 'packets/s')),
        document.createElementNS(SVG, 'svg')),
      make('div', { class: 'backends' }));
    const spark = $('svg', details);
    spark.setAttribute('class', 'spark');
    spark.setAttribute('aria-hidden', 'true');
    details.addEventListener('toggle', () => {
      if (details.open === open.has(service.name)) return;
      if (details.open) open.add(service.name); else open.delete(service.name);
      // For one more, the one that was opened first is closed: what closes it has nothing more to tell here.
      for (const name of [...open].slice(0, -OPEN)) {
        open.delete(name);
        for (const one of rows.values()) if (one.details.dataset.service === name) one.details.open = false;
      }
      connect();
    });
    return { details, tag: $('.tag', details), text: $('.share span', details), bar: $('.bar', details),
      live: $('.live', details).firstChild, rate: $('.rate', details).firstChild, spark, backends: $('.backends', details) };
  };
  const severity = service => ['error', 'full', 'no-backend', 'fail-open', 'degraded'].indexOf(service.state) + 1 || 9;
  const showServices = page => {
    const wanted = $('#filter').value.trim().toLowerCase();
    const all = page.services.filter(service => !wanted || `${service.name} ${service.endpoint}`.toLowerCase().includes(wanted))
      .sort((a, b) => severity(a) - severity(b) || a.number - b.number);
    setText($('#services .count'), wanted ? `${all.length} of ${page.services.length}` : String(page.services.length));
    const list = $('#services .list'), drawn = all.slice(0, shown);
    const there = new Set(page.services.map(keyOf));
    for (const [key, one] of rows) if (!there.has(key)) { one.details.remove(); rows.delete(key); past.delete(key); }
    const elements = drawn.map(service => {
      const key = keyOf(service);
      if (!rows.has(key)) rows.set(key, row(service));
      const one = rows.get(key), { new: fresh, existing, none } = service.backends;
      const [level, word] = STATE[service.state];
      one.tag.className = `tag ${level}`;
      setText(one.tag, word);
      const count = fresh + existing + none;
      setText(one.text, `${fresh} of ${count} take new flows`);
      const shares = [['new', fresh], ['existing', existing], ['none', none]].filter(([, n]) => n);
      const said = shares.join();
      if (one.bar.dataset.said !== said) {
        one.bar.dataset.said = said;
        one.bar.replaceChildren(...shares.map(([kind, n]) => make('i', { class: kind, style: `flex:${n}` })));
      }
      one.live.data = plain(service.live);
      one.rate.data = plain(service.packets);
      const packets = past.get(key) || [];
      draw(one.spark, packets, Math.max(15, packets.length));
      return one.details;
    });
    if (elements.length !== list.children.length || elements.some((element, n) => list.children[n] !== element)) {
      list.replaceChildren(...(elements.length ? elements : [make('p', { class: 'empty' }, wanted ? 'No service has such a name or address.' : 'There are no services.')]));
    }
    const more = $('#more'), left = all.length - drawn.length;
    more.hidden = !left;
    setText(more, `Show ${Math.min(left, MORE)} more of ${left}`);
  };
  const level = { up: 'good', refusing: 'warning', down: 'bad', unknown: '' };
  const given = { new: ['good', 'takes new flows'], 'existing-only': ['warning', 'keeps its flows'], none: ['bad', 'gets nothing'] };
  const showBackends = ({ at_ms, backends }) => {
    const now = new Map(), byService = new Map();
    for (const backend of backends) {
      const key = `${backend.service} ${backend.endpoint} ${backend.name} ${backend.address}`;
      now.set(key, [at_ms, backend.packets]);
      const before = backendsBefore.get(key);
      const seconds = before ? (at_ms - before[0]) / 1000 : 0;
      const packets = seconds > 0 ? Math.max(0, backend.packets - before[1]) / seconds : null;
      const service = `${backend.service} ${backend.endpoint}`;
      if (!byService.has(service)) byService.set(service, []);
      const [serves, word] = given[backend.serving];
      const intent = backend.removed ? 'removed' : backend.admin === 'active' ? null : backend.admin;
      byService.get(service).push(make('tr', { 'data-backend': backend.name },
        make('td', { class: 'who' }, make('b', {}, backend.name), intent && make('span', { class: 'tag warning' }, intent), make('div', { class: 'mono' }, backend.address)),
        make('td', { class: `state ${level[backend.health]}` }, backend.health),
        make('td', { class: `state ${serves}` }, word),
        make('td', { class: 'number', 'data-unit': 'weight' }, String(backend.weight)),
        make('td', { class: 'number', 'data-unit': 'active' }, whole.format(backend.active)),
        make('td', { class: 'number', 'data-unit': 'idle' }, whole.format(backend.idle)),
        make('td', { class: 'number', 'data-unit': 'packets/s' }, packets == null ? '–' : plain(packets)),
        make('td', { class: 'error' }, backend.resolved ? '' : 'next hop not known. ', backend.error || '')));
    }
    backendsBefore = now;
    for (const [service, lines] of byService) {
      const one = rows.get(service);
      if (!one) continue;
      const heads = [['Backend'], ['Health'], ['Serving'], ['Weight', 1], ['Active', 1], ['Idle', 1], ['Packets/s', 1], ['Last error']];
      one.backends.replaceChildren(make('table', {},
        make('thead', {}, make('tr', {}, ...heads.map(([text, number]) => make('th', { class: number && 'number', scope: 'col' }, text)))),
        make('tbody', {}, ...lines)));
    }
  };

  const show = page => {
    latest = page;
    document.title = page.config.error || page.services.some(service => severity(service) < 5) ? '(!) Tether' : 'Tether';
    setText($('#about'), `${page.attachments.map(one => `${one.interface} (${one.mode})`).join(', ') || 'attached to nothing'} · version ${page.version} · up ${duration(page.uptime_s)} · generation ${page.generation}`);
    showVerdict(page);
    showTiles(page);
    showDrains(page);
    showServices(page);
    showEvents(page);
  };

  // ---- news ----
  const connected = is => { const link = $('#link'); setText(link, is ? 'live' : 'no connection'); link.classList.toggle('on', is); };
  function connect() {
    if (source) source.close();
    const names = open.size ? encodeURIComponent(JSON.stringify([...open])) : '';
    source = new EventSource(`events${names && `?open=${names}`}`);
    source.addEventListener('past', event => {
      const { total, services } = JSON.parse(event.data);
      for (const name of Object.keys(totals)) totals[name] = total.map(one => one[name]);
      past.clear();
      for (const { key, packets } of services) past.set(key, packets);
    });
    source.addEventListener('now', event => {
      connected(true);
      const page = JSON.parse(event.data);
      page.services.forEach((service, number) => { service.number = number; });
      if (page.fresh) {
        for (const name of Object.keys(totals)) push(totals[name], page.rates[name], TOTALS);
        for (const service of page.services) {
          const key = keyOf(service);
          if (!past.has(key)) past.set(key, []);
          push(past.get(key), service.packets, OF_SERVICE);
        }
      }
      show(page);
    });
    source.addEventListener('backends', event => showBackends(JSON.parse(event.data)));
    source.addEventListener('error', () => {
      connected(false);
      // The browser tries again by itself, but not after an answer that is no stream.
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
    });
  }
  $('#filter').addEventListener('input', () => { shown = SHOWN; if (latest) showServices(latest); });
  $('#more').addEventListener('click', () => { shown += MORE; showServices(latest); });
  connect();
})();
