/*
 * Runs one kernel over a file as an ordinary program, for its author:
 *
 *     cc -O2 -Iinclude my.c native/main.c native/runtime.c native/opencsd.c -o my
 *     ./my FILE [OFFSET SIZE] [-- ARGUMENT..] > output
 *
 * A kernel with a main of its own is compiled with -Dmain=kernel.
 */
#include "runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define ARGUMENTS_MAX 4096

int64_t kernel(const struct warren_request *request);

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t number(const char *text)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 0);
    if (errno || end == text || *end) {
        fprintf(stderr, "'%s' is not a number\n", text);
        exit(2);
    }
    return value;
}

static void map_file(const char *path, struct warren_native_input *input)
{
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &status) != 0)
        fail(path);
    input->snapshot_size = status.st_size;
    input->size = status.st_size;
    if (status.st_size == 0)
        return;
    input->snapshot = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (input->snapshot == MAP_FAILED)
        fail(path);
    close(file);
}

int main(int count, char **words)
{
    static uint64_t arguments[ARGUMENTS_MAX];
    struct warren_native_input input = {.arguments = arguments};
    if (count < 2) {
        fprintf(stderr, "usage: %s FILE [OFFSET SIZE] [-- ARGUMENT..] > OUTPUT\n", words[0]);
        return 2;
    }
    map_file(words[1], &input);
    int word = 2;
    if (word + 1 < count && strcmp(words[word], "--") != 0) {
        input.offset = number(words[word]);
        input.size = number(words[word + 1]);
        word += 2;
    }
    if (word < count && strcmp(words[word], "--") == 0)
        for (word++; word < count && input.argument_count < ARGUMENTS_MAX; word++)
            arguments[input.argument_count++] = number(words[word]);
    struct warren_native *native = warren_native_new(64ULL << 20, 1ULL << 36);
    if (!native)
        fail("memory");
    int64_t value = warren_native_run(native, kernel, 0, &input);
    uint64_t size;
    const uint8_t *output = warren_native_output(native, &size);
    if (value < 0)
        fprintf(stderr, "the kernel returned %" PRId64 "\n", value);
    else if (fwrite(output, 1, size, stdout) != size || fflush(stdout) != 0)
        fail("standard output");
    warren_native_free(native);
    return value < 0;
}
