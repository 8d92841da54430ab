// The agent as it was first thought of, in Node.js: one process, `ws` where it is installed (else the little of RFC 6455
// that this needs), a shell for each command, `os.cpus`, `lspci | grep`, and setInterval.
//   node agent.mjs URL NODE CLI SECONDS
import { exec } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import http from 'node:http';
import https from 'node:https';
import os from 'node:os';
import { EventEmitter } from 'node:events';

const [url, node, cli, seconds] = process.argv.slice(2);
const replicas = new Map();
let peer = null;

/** Client frames are masked, the server's are not; neither is fragmented here. */
class Minimal extends EventEmitter {
    constructor(url, { headers }) {
        super();
        const { protocol, hostname, port, pathname } = new URL(url);
        const request = (protocol === 'wss:' ? https : http).request({
            hostname, port, path: pathname,
            headers: { ...headers, Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': 13,
                'Sec-WebSocket-Key': randomBytes(16).toString('base64') },
        });
        request.on('error', (error) => this.emit('error', error));
        request.on('upgrade', (_, socket, head) => {
            this.socket = socket;
            socket.setNoDelay(true);
            let rest = head;
            socket.on('data', (data) => { rest = this.read(Buffer.concat([rest, data])); });
            socket.on('close', () => this.emit('close'));
            socket.on('error', () => {});
            this.emit('open');
        });
        request.end();
    }

    read(data) {
        for (;;) {
            if (data.length < 2) return data;
            let length = data[1] & 127, at = 2;
            if (length === 126) { if (data.length < 4) return data; length = data.readUInt16BE(2); at = 4; }
            if (length === 127) { if (data.length < 10) return data; length = Number(data.readBigUInt64BE(2)); at = 10; }
            if (data.length < at + length) return data;
            const body = data.subarray(at, at + length);
            if ((data[0] & 15) === 1) this.emit('message', body);
            if ((data[0] & 15) === 9) this.frame(10, body);
            data = data.subarray(at + length);
        }
    }

    frame(kind, body) {
        const mask = randomBytes(4);
        const long = body.length > 125;
        const head = long ? Buffer.from([128 | kind, 254, body.length >> 8, body.length & 255])
            : Buffer.from([128 | kind, 128 | body.length]);
        const masked = Buffer.from(body.map((byte, i) => byte ^ mask[i & 3]));
        this.socket.write(Buffer.concat([head, mask, masked]));
    }

    send(text) { this.frame(1, Buffer.from(text)); }
}

const WebSocket = await import('ws').then((module) => module.default, () => Minimal);

const say = (type, payload) => peer?.send(JSON.stringify({ type, payload }));
const shell = (command) => new Promise((done) => exec(command, (error, out, complaint) => done({ error, out, complaint })));

let before = os.cpus();
function cpuUse() {
    const now = os.cpus();
    const sum = (cpus, kinds) => cpus.reduce((total, { times }) => total + kinds.reduce((t, kind) => t + times[kind], 0), 0);
    const all = ['user', 'nice', 'sys', 'idle', 'irq'];
    const total = sum(now, all) - sum(before, all), idle = sum(now, ['idle']) - sum(before, ['idle']);
    before = now;
    return total ? Math.round(100 * (1 - idle / total)) : 0;
}

async function systemInfo() {
    const { out } = await shell('lspci 2>/dev/null | grep -iE "vga|3d|display"');
    say('system_info', { hostname: os.hostname(), cpuModel: os.cpus()[0]?.model, cpuCores: os.cpus().length,
        ramGb: Math.round(os.totalmem() / 2 ** 30), gpuInfo: out.split('\n').filter(Boolean) });
}

function heartbeat() {
    const containers = [...replicas].map(([replica_id, status]) => ({ replica_id, status }));
    say('heartbeat', { status: { containers, cpu_usage: cpuUse(),
        memory_used_gb: Math.round((os.totalmem() - os.freemem()) / 2 ** 30) } });
}

async function deploy({ replica_id, image }) {
    const { error, out, complaint } = await shell(`${cli} run -d --name bench-${replica_id} --label bench.replica=${replica_id} ${image}`);
    replicas.set(replica_id, error ? 'failed' : 'running');
    say('deploy_result', error ? { replica_id, status: 'failed', error: complaint }
        : { replica_id, status: 'running', container_id: out.trim() });
}

async function stop({ replica_id }) {
    const { error, complaint } = await shell(`${cli} stop -t 10 bench-${replica_id} && ${cli} rm bench-${replica_id}`);
    replicas.delete(replica_id);
    say('stop_result', error ? { replica_id, status: 'failed', error: complaint } : { replica_id, status: 'stopped' });
}

async function adopt() {
    const { out } = await shell(`${cli} ps -a --format '{{.Names}}'`);
    for (const line of out.split('\n').filter(Boolean)) replicas.set(line.split('\t')[1] ?? line, 'running');
}

function connect() {
    peer = new WebSocket(url, { headers: { 'X-Node-Id': node } });
    peer.on('open', () => { systemInfo(); heartbeat(); });
    peer.on('message', (data) => {
        const { type, payload } = JSON.parse(data);
        if (type === 'deploy') deploy(payload);
        if (type === 'stop') stop(payload);
    });
    peer.on('error', () => {});
    peer.on('close', () => setTimeout(connect, 1000));
}

await adopt();
connect();
setInterval(heartbeat, seconds * 1000);
