/*
 * The parsers of the C core under a fuzzer: memory.oom_control, and memory.events of cgroup v2.
 *
 * Inputs are mutated by dice that a seed determines. One that takes the core where none has been before (gcc's
 * -fsanitize-coverage=trace-pc tells) is kept and mutated further. A result is compared with that of a reader that is
 * written another way, for text that it takes for well-formed, and has to be a value or an errno for all other.
 *
 * fuzz_parsers SEED SECONDS FOLDER FINDING SEEDFILE...   fuzzes; FOLDER is empty, and on a tmpfs for speed
 * fuzz_parsers replay FOLDER FILE...                     tries these inputs alone
 */
#include "memcg_oom.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LONGEST 2048 /* more than either parser reads of a file */
#define KEPT 4096
#define HIGHEST 9223372036854775799ULL /* the last eight of int64_t are refused as well: no counter gets there */
#define PLACES 65536

struct input {
    size_t length;
    char bytes[LONGEST];
};

static struct input pool[KEPT];
static size_t pooled;

/* -- where the core has been: counted by what gcc calls at each edge of it; this file itself is built without. */

static unsigned char visits[PLACES];
static unsigned char known[PLACES];

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
    size_t place = (size_t)__builtin_return_address(0) % PLACES;

    if (visits[place] < 255)
        visits[place]++;
}

/* Whether the last input went somewhere new, or somewhere many more times than any before: by powers of two. */
static bool went_further(void)
{
    bool further = false;

    for (size_t i = 0; i < PLACES; i++) {
        unsigned char bit = 0;

        while (visits[i] >> bit && bit < 8)
            bit++;
        if (bit > known[i]) {
            known[i] = bit;
            further = true;
        }
    }
    return further;
}

/* -- the dice: xorshift64* */

static uint64_t state;

static uint64_t roll(uint64_t sides)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * 0x2545f4914f6cdd1dULL >> 33) % sides;
}

static const char *const PIECES[] = {
    "oom_kill ", "oom ", "oom_group_kill ", "under_oom 1\n", "oom_kill_disable 0\n", "max ", "high ", "low 0\n", "\n", " ", "0",
    "-1", "9223372036854775807", "9223372036854775808", "9223372036854775799", "18446744073709551616", "oom_kil", "\t", "+1", "0x1",
};

static void insert(struct input *input, size_t at, const char *bytes, size_t length)
{
    if (input->length + length > LONGEST)
        return;
    memmove(input->bytes + at + length, input->bytes + at, input->length - at);
    memcpy(input->bytes + at, bytes, length);
    input->length += length;
}

static void mutate(struct input *input)
{
    for (uint64_t times = 1 + roll(4); times; times--) {
        size_t at = roll(input->length + 1), length = roll(20);
        const struct input *other = &pool[roll(pooled)];
        const char *piece;
        char part[64];

        switch (roll(6)) {
        case 0:
            length = length < input->length - at ? length : input->length - at;
            memmove(input->bytes + at, input->bytes + at + length, input->length - at - length);
            input->length -= length;
            break;
        case 1:
            piece = PIECES[roll(sizeof(PIECES) / sizeof(*PIECES))];
            insert(input, at, piece, strlen(piece));
            break;
        case 2:
            if (at < input->length)
                input->bytes[at] = (char)roll(256);
            break;
        case 3:
            if (at < other->length) {
                memcpy(input->bytes + at, other->bytes + at, other->length - at);
                if (input->length < other->length)
                    input->length = other->length;
            }
            break;
        case 4:
            length = length < input->length - at ? length : input->length - at;
            memcpy(part, input->bytes + at, length);
            insert(input, at, part, length);
            break;
        default:
            part[0] = (char)('0' + roll(10));
            insert(input, at, part, 1);
        }
    }
}

/* -- another reader, that goes by lines and knows a number when strtoull() reads all of it */

/* -ENODATA: no such line; -EBADMSG: it holds no number that fits; else its value. */
static int64_t reference(const char *text, const char *key)
{
    char copy[LONGEST + 1], wanted[64];
    const char *value = NULL;
    char *line = copy, *end;
    unsigned long long number;

    text += *text == '\n'; /* an empty first line, which no kernel writes, is passed over */
    snprintf(copy, sizeof(copy), "%s", text);
    snprintf(wanted, sizeof(wanted), "%s%s", key, *key ? " " : "");
    while (line && !value) {
        char *newline = strchr(line, '\n');

        if (newline)
            *newline = '\0';
        if (strncmp(line, wanted, strlen(wanted)) == 0)
            value = line + strlen(wanted);
        line = newline ? newline + 1 : NULL;
    }
    if (!value)
        return -ENODATA;
    if (!*value || strspn(value, "0123456789") != strlen(value))
        return -EBADMSG;
    errno = 0;
    number = strtoull(value, &end, 10);
    return errno || number > HIGHEST ? -EBADMSG : (int64_t)number;
}

static const char *wrong;
static char details[256];

static void expect(const char *what, int64_t found, int64_t expected)
{
    if (found == expected)
        return;
    snprintf(details, sizeof(details), "%s is %lld instead of %lld", what, (long long)found, (long long)expected);
    wrong = details;
}

/* -- one input */

static char paths[PATH_MAX];
static int oom_control_fd, local_fd, events_fd;

static int make(const char *folder, const char *name)
{
    char path[PATH_MAX];
    int fd;

    if (snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path))
        return -1;
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        perror(path);
        exit(2);
    }
    return fd;
}

static void fill(int fd, const struct input *input)
{
    if (ftruncate(fd, 0) < 0 || pwrite(fd, input->bytes, input->length, 0) != (ssize_t)input->length) {
        perror("write");
        exit(2);
    }
}

static int64_t or_0(int64_t value)
{
    return value == -ENODATA ? 0 : value;
}

/* What a file of that length looks like to somebody who reads `size` bytes of it. */
static void cut(char *text, const struct input *input, size_t size)
{
    size_t length = input->length < size ? input->length : size;

    memcpy(text, input->bytes, length);
    text[length] = '\0';
}

static void try_counters(const char *what, const struct memcg_counters *counters, const char *text)
{
    char name[64];
    const struct {
        const char *key;
        int64_t found, expected;
    } fields[] = {
        {"oom_kill", counters->oom_kill, reference(text, "oom_kill")},
        {"oom", counters->oom, or_0(reference(text, "oom"))},
        {"oom_group_kill", counters->oom_group_kill, or_0(reference(text, "oom_group_kill"))},
        {"max", counters->max, or_0(reference(text, "max"))},
        {"high", counters->high, or_0(reference(text, "high"))},
    };

    for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
        snprintf(name, sizeof(name), "%s of %s", fields[i].key, what);
        expect(name, fields[i].found, fields[i].expected);
    }
}

/* Returns whether all was right. */
static bool try(const struct input *input)
{
    static const char *const KEYS[] = {"oom_kill", "under_oom", "oom", ""};
    char *exact, text[LONGEST + 1];
    const struct memcg_control control = {.file = "memory.oom_control", .key = "oom_kill"};
    const struct memcg_control usage = {.file = "memory.oom_control", .key = ""};
    struct memcg_counters counters;
    uint64_t any = 0;
    struct stat status;
    int64_t value;
    uint8_t under_oom;

    wrong = NULL;
    memset(visits, 0, sizeof(visits));
    /* Of exactly that length, so that ASan sees who reads on. */
    exact = malloc(input->length + 1);
    if (!exact)
        exit(2);
    memcpy(exact, input->bytes, input->length);
    exact[input->length] = '\0';
    for (size_t i = 0; i < sizeof(KEYS) / sizeof(*KEYS); i++)
        expect(KEYS[i], memcg_parse_counter(exact, KEYS[i]), reference(exact, KEYS[i]));
    free(exact);

    fill(oom_control_fd, input);
    cut(text, input, 255);
    value = memcg_read_value(&control, oom_control_fd, &under_oom);
    expect("oom_kill of the file", value, reference(text, "oom_kill"));
    expect("under_oom of the file", under_oom, reference(text, "under_oom") > 0);
    expect("the file", memcg_read_value(&usage, oom_control_fd, &under_oom), reference(text, ""));

    fill(local_fd, input);
    fill(events_fd, input);
    cut(text, input, 1023);
    memcg_count_many(-1, 0, &any, paths, 1, &counters);
    try_counters("memory.events.local", &counters, text);
    if (fstat(events_fd, &status) < 0)
        exit(2);
    memcg_subtree_many(status.st_dev, &any, paths, 1, &counters);
    try_counters("memory.events", &counters, text);
    return !wrong;
}

static bool load(const char *path, struct input *input)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length;

    if (fd < 0) {
        perror(path);
        return false;
    }
    length = read(fd, input->bytes, LONGEST);
    close(fd);
    input->length = length > 0 ? (size_t)length : 0;
    return length >= 0;
}

/* Before each try, so that it is there when a sanitizer ends this process. */
static void save(const char *path, const struct input *input)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || write(fd, input->bytes, input->length) != (ssize_t)input->length) {
        perror(path);
        exit(2);
    }
    close(fd);
}

static void begin(const char *folder)
{
    oom_control_fd = make(folder, "memory.oom_control");
    local_fd = make(folder, "memory.events.local");
    events_fd = make(folder, "memory.events");
    snprintf(paths, sizeof(paths), "%s", folder);
}

static int replay(int count, char **files)
{
    static struct input input;

    for (int i = 0; i < count; i++) {
        if (!load(files[i], &input))
            return 2;
        if (!try(&input)) {
            fprintf(stderr, "%s: %s\n", files[i], wrong);
            return 1;
        }
    }
    return 0;
}

static int fuzz(const char *seed, const char *seconds, const char *finding, int count, char **files)
{
    static struct input input;
    unsigned long long tries = 0;
    time_t end = time(NULL) + atoi(seconds);

    state = strtoull(seed, NULL, 10) * 2 + 1;
    for (int i = 0; i < count && pooled < KEPT; i++)
        if (load(files[i], &pool[pooled])) {
            pooled++;
            if (!try(&pool[pooled - 1]))
                break;
            went_further();
        }
    if (!pooled)
        return 2;
    while (!wrong && ((++tries & 63) || time(NULL) < end)) {
        input = pool[roll(pooled)];
        mutate(&input);
        save(finding, &input);
        if (try(&input) && went_further() && pooled < KEPT)
            pool[pooled++] = input;
    }
    printf("%llu inputs, %zu kept\n", tries, pooled);
    if (wrong) {
        fprintf(stderr, "%s\n", wrong);
        return 1;
    }
    unlink(finding);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 3 && strcmp(argv[1], "replay") == 0) {
        begin(argv[2]);
        return replay(argc - 3, argv + 3);
    }
    if (argc < 6) {
        fprintf(stderr, "usage: fuzz_parsers SEED SECONDS FOLDER FINDING SEEDFILE... | replay FOLDER FILE...\n");
        return 2;
    }
    begin(argv[3]);
    return fuzz(argv[1], argv[2], argv[4], argc - 5, argv + 5);
}
