/*
 * A container CLI that does next to nothing: what is measured with it is what its caller adds.
 *
 * It speaks as much of Docker's words as the agent and its rivals need, keeps a file for each container in the folder
 * of its own binary, answers 1 ms after its start, and notes in `calls` when each call began and ended (CLOCK_MONOTONIC,
 * in nanoseconds). While there is a file `hang`, `run` does not answer.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* How long a call takes, in nanoseconds. */
#define TAKES 1000000LL

struct container { char id[65], name[256], replica[256], deploy[256], spec[256], gpus[256]; };

static char folder[PATH_MAX];

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static const char *path(const char *kind, const char *name) {
    static char text[2 * PATH_MAX];
    snprintf(text, sizeof text, "%s/%s%s", folder, kind, name);
    return text;
}

static void note(char what, const char *verb, long long when) {
    char line[128];
    int length = snprintf(line, sizeof line, "%c %s %lld\n", what, verb, when);
    int file = open(path("calls", ""), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || write(file, line, length) != length) perror("calls");
    close(file);
}

static void answer_at(long long when) {
    struct timespec t = {when / 1000000000LL, when % 1000000000LL};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL)) {}
}

static int load(const char *kind, const char *key, struct container *c) {
    FILE *file = fopen(path(kind, key), "re");
    if (!file) return 0;
    memset(c, 0, sizeof *c);
    int fields = fscanf(file, "%64s %255s %255s %255s %255s %255s", c->id, c->name, c->replica, c->deploy, c->spec, c->gpus);
    fclose(file);
    return fields == 6;
}

static int find(const char *key, struct container *c) { return load("id/", key, c) || load("name/", key, c); }

static void save(const struct container *c) {
    const char *kinds[] = {"id/", "name/"}, *keys[] = {c->id, c->name};
    for (int i = 0; i < 2; i++) {
        FILE *file = fopen(path(kinds[i], keys[i]), "we");
        if (!file) { perror(kinds[i]); exit(1); }
        fprintf(file, "%s %s %s %s %s %s\n", c->id, c->name, c->replica, c->deploy, c->spec, c->gpus);
        fclose(file);
    }
}

static void copy(char *to, const char *from) { snprintf(to, 256, "%s", from); }

static int run(int count, char **args) {
    struct container c = {.name = "-", .replica = "-", .deploy = "-", .spec = "-", .gpus = "-"};
    for (int i = 0; i < count; i++) {
        char *value = strchr(args[i], '=');
        int is_name = !strncmp(args[i], "--name", 6), is_label = !strncmp(args[i], "--label", 7);
        if (!is_name && !is_label) continue;
        if (!value || value > strchr(args[i], '-') + 7) value = i + 1 < count ? args[i + 1] - 1 : "=";
        value++;
        if (is_name) copy(c.name, value);
        if (is_label && !strncmp(value, "vectorlay.replica=", 18)) copy(c.replica, value + 18);
        if (is_label && !strncmp(value, "vectorlay.deploy=", 17)) copy(c.deploy, value + 17);
        if (is_label && !strncmp(value, "vectorlay.spec=", 15)) copy(c.spec, value + 15);
        if (is_label && !strncmp(value, "vectorlay.gpus=", 15)) copy(c.gpus, value + 15);
    }
    snprintf(c.id, sizeof c.id, "%016llx%016llx%016llx%016llx", (unsigned long long)now(), (unsigned long long)getpid(), 0ULL, 0ULL);
    while (!access(path("hang", ""), F_OK)) usleep(10000);
    save(&c);
    puts(c.id);
    return 0;
}

static int ps(int count, char **args) {
    const char *only = NULL;
    for (int i = 0; i < count; i++)
        if (!strncmp(args[i], "--filter=id=", 12)) only = args[i] + 12;
    DIR *all = opendir(path("id/", ""));
    struct dirent *entry;
    struct container c;
    while (all && (entry = readdir(all)))
        if (entry->d_name[0] != '.' && (!only || !strcmp(only, entry->d_name)) && load("id/", entry->d_name, &c))
            printf("%s\t\"%s\"\t\"%s\"\t\"%s\"\t\"%s\"\tUp 5 minutes\n", c.id, c.replica, c.deploy, c.spec, c.gpus);
    return 0;
}

static int one(const char *verb, const char *key) {
    struct container c;
    if (!find(key, &c)) {
        fprintf(stderr, "Error: No such container: %s\n", key);
        return 1;
    }
    if (!strcmp(verb, "inspect")) {
        int pid = 0;
        FILE *file = fopen(path("pid", ""), "re");
        if (file) {
            if (fscanf(file, "%d", &pid) != 1) pid = 0;
            fclose(file);
        }
        printf("{\"Status\":\"running\",\"Running\":true,\"Pid\":%d,\"ExitCode\":0,\"OOMKilled\":false}\n", pid);
        return 0;
    }
    if (!strcmp(verb, "rm")) {
        unlink(path("id/", c.id));
        unlink(path("name/", c.name));
    }
    puts(key);
    return 0;
}

int main(int count, char **args) {
    long long began = now();
    ssize_t length = readlink("/proc/self/exe", folder, sizeof folder - 1);
    if (length < 0) return 1;
    folder[length] = 0;
    *strrchr(folder, '/') = 0;
    int at = 1;
    while (at < count && !strncmp(args[at], "--", 2) && strcmp(args[at], "--version")) at++;
    const char *verb = at < count ? args[at] : "", *last = args[count - 1];
    if (!strcmp(verb, "container")) verb = "inspect";
    note('B', *verb ? verb : "nothing", began);
    int status = 0;
    if (!strcmp(verb, "run")) status = run(count - at, args + at);
    else if (!strcmp(verb, "ps")) status = ps(count - at, args + at);
    else if (!strcmp(verb, "inspect") || !strcmp(verb, "stop") || !strcmp(verb, "rm")) status = one(verb, last);
    else if (!strcmp(verb, "image"))
        printf("{\"Id\":\"sha256:%064d\",\"Config\":{\"Labels\":null,\"Volumes\":null}}\n", 1);
    else if (!strcmp(verb, "version")) puts("{\"Client\":{\"Version\":\"28.2.2\"},\"Server\":{\"Version\":\"28.2.2\"}}");
    else if (!strcmp(verb, "--version")) puts("Docker version 28.2.2, build e6534b4");
    answer_at(began + TAKES);
    fflush(stdout);
    note('E', verb, now());
    return status;
}
