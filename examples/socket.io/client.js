// Clients of Socket.IO, as they come. After each line of standard input they say on standard output what became of them.
//
//     node client.js URL COUNT ADDRESS,ADDRESS... TRANSPORT...
//
// They come from these addresses in turn.
'use strict';

const { Agent } = require('node:http');
const { io } = require('socket.io-client');

const [url, count, addresses, ...transports] = process.argv.slice(2);
const from = addresses.split(',');

const clients = Array.from({ length: Number(count) }, (_, index) => {
  const address = from[index % from.length];
  // Each request of long-polling has a connection of its own: the hardest case for whoever places connections.
  const agent = new Agent({ localAddress: address, keepAlive: false });
  // `forceNew`: a connection of its own for each, as from as many browsers.
  const socket = io(url, { transports, forceNew: true, agent });
  const client = { socket, address, name: null, connects: 0, disconnects: [], errors: [], pings: 0 };
  socket.on('connect', () => {
    client.connects += 1;
  });
  socket.on('name', (name) => {
    client.name = name;
  });
  socket.on('disconnect', (reason) => client.disconnects.push(reason));
  socket.on('connect_error', (error) => client.errors.push(String(error.message)));
  // The server's heartbeat.
  socket.io.on('ping', () => {
    client.pings += 1;
  });
  return client;
});

async function report() {
  const echoes = await Promise.all(
    clients.map(({ socket }) =>
      socket.connected
        ? socket.timeout(5_000).emitWithAck('echo', 'hello').then((text) => text === 'hello', () => false)
        : false,
    ),
  );
  const line = clients.map(({ socket, ...client }, index) => ({
    ...client,
    echoed: echoes[index],
    transport: socket.io.engine?.transport?.name ?? null,
  }));
  console.log(JSON.stringify(line));
}

require('node:readline')
  .createInterface({ input: process.stdin })
  .on('line', report)
  .on('close', () => process.exit(0));
