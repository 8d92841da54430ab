/*
 * The least that a node can be: a socket that is kept, and a heartbeat. `floor PORT NODE SECONDS`, on loopback. It has no TLS
 * and does nothing that it is told.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void send_frame(int to, const char *text) {
    unsigned char frame[256] = {0x81, 0x80 | (unsigned char)strlen(text), 0, 0, 0, 0};
    memcpy(frame + 6, text, strlen(text));
    if (write(to, frame, 6 + strlen(text)) < 0) exit(1);
}

int main(int count, char **args) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char request[512], answer[4096];
    if (count != 4) return 2;
    address.sin_port = htons(atoi(args[1]));
    int peer = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(peer, (struct sockaddr *)&address, sizeof address)) return 1;
    int length = snprintf(request, sizeof request,
        "GET / HTTP/1.1\r\nHost: floor\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Node-Id: %s\r\n\r\n", args[2]);
    if (write(peer, request, length) < 0 || read(peer, answer, sizeof answer) <= 0) return 1;
    struct timespec next, now;
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        long long left = (next.tv_sec - now.tv_sec) * 1000000000LL + next.tv_nsec - now.tv_nsec;
        if (left <= 0) {
            send_frame(peer, "{\"type\":\"heartbeat\",\"payload\":{\"status\":{}}}");
            next.tv_sec += atoi(args[3]);
            continue;
        }
        struct timespec wait = {left / 1000000000LL, left % 1000000000LL};
        struct pollfd readable = {peer, POLLIN, 0};
        if (ppoll(&readable, 1, &wait, NULL) > 0 && read(peer, answer, sizeof answer) <= 0) return 1;
    }
}
