// A Socket.IO server as it comes: heartbeat 25 s, WebSocket and long-polling. It says its name to whoever connects, and echoes.
//
//     node server.js NAME PORT
'use strict';

const { createServer } = require('node:http');
const { Server } = require('socket.io');

const [name, port] = process.argv.slice(2);

const http = createServer((request, response) => {
  // For Tether's health check; Socket.IO answers for its own path before this.
  response.writeHead(request.url === '/healthz' ? 200 : 404).end();
});
const io = new Server(http, {
  pingInterval: 25_000,
  pingTimeout: 20_000,
});
io.on('connection', (socket) => {
  socket.emit('name', name);
  socket.on('echo', (text, answer) => answer(text));
});
// On all addresses: the VIP is on the loopback.
http.listen(Number(port), '::', () => console.log('listening'));
