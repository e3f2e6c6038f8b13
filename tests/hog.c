/*
 * hog CGROUP BYTES [PROCESSES [ADJ]]: enters the cgroup, then fills memory until it is killed or done, with so many
 * processes at once, at an oom_score_adj. Exits with 0 when it had enough, 1 on an error; with more than one process it
 * waits for all of them.
 *
 * hog CGROUP -: enters it and has as many bytes of memory as each line on standard input says, which it repeats when it
 * has them.
 *
 * hog CGROUP FILE: enters it and reads the file again and again.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void put(const char *directory, const char *file, const char *text)
{
    char path[8192];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", directory, file);
    fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) {
        perror(path);
        exit(1);
    }
    close(fd);
}

static int fill(size_t bytes)
{
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return 1;
    for (size_t at = 0; at < bytes; at += 4096)
        memory[at] = 1;
    return 0;
}

static int obey(void)
{
    size_t most = (size_t)1 << 32, had = 0, wanted;
    char *memory = mmap(NULL, most, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char line[64];

    if (memory == MAP_FAILED)
        return 1;
    madvise(memory, most, MADV_NOHUGEPAGE);
    while (fgets(line, sizeof(line), stdin)) {
        wanted = strtoull(line, NULL, 10);
        for (size_t at = had; at < wanted; at += 4096)
            memory[at] = 1;
        if (wanted < had)
            madvise(memory + wanted, had - wanted, MADV_DONTNEED);
        had = wanted;
        fputs(line, stdout);
        fflush(stdout);
    }
    return 0;
}

static int read_again_and_again(const char *path)
{
    static char page[1 << 16];
    int fd = open(path, O_RDONLY);

    if (fd < 0)
        return 1;
    for (;;)
        if (read(fd, page, sizeof(page)) <= 0 && lseek(fd, 0, SEEK_SET) < 0)
            return 1;
}

int main(int argc, char **argv)
{
    int processes = argc > 3 ? atoi(argv[3]) : 1;
    size_t bytes;

    if (argc < 3)
        return 1;
    bytes = strtoull(argv[2], NULL, 10);
    put(argv[1], "cgroup.procs", "0");
    if (argc > 4)
        put("/proc/self", "oom_score_adj", argv[4]);
    if (strcmp(argv[2], "-") == 0)
        return obey();
    if (argv[2][0] == '/')
        return read_again_and_again(argv[2]);
    if (processes == 1)
        return fill(bytes);
    for (int i = 0; i < processes; i++)
        if (fork() == 0)
            _exit(fill(bytes));
    while (wait(NULL) > 0)
        ;
    return 0;
}
