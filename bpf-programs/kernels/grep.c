/*
 * grep: the lines that contain a literal.
 *
 * Operations: read_stream, view. A line belongs to the request in which it begins.
 * Arguments:  0   bytes of the literal, 1 to 256
 *             1.. the literal, eight bytes to an argument, the first byte lowest; it holds no newline
 * Output:     the lines with their newlines; the last line of the file may have none.
 */
#include <warren_lines.h>

#define LITERAL_MAX 256

static u64 literal_words[LITERAL_MAX / 8];

/* The commonest bytes of text, commonest first. */
static const char common[] = " etaoinsrhldcumfpgwybvk,.0123456789";

/* How rare a byte is in text: searching for a rare one stops seldom. */
static u64 rarity(u8 byte)
{
    for (u64 rank = 0; rank < sizeof(common) - 1; rank++)
        if ((u8)common[rank] == byte)
            return rank;
    return sizeof(common);
}

/* Fetches the literal; its length, or a negative error. */
WARREN_INLINE s64 fetch_literal(void)
{
    u64 length;
    if (warren_argument(0, &length) != 0 || length == 0 || length > LITERAL_MAX)
        return -WARREN_EINVAL;
    for (u64 word = 0; word < (length + 7) / 8; word++)
        if (warren_argument(1 + word, &literal_words[word]) != 0)
            return -WARREN_EINVAL;
    return length;
}

/* Index of the literal's rarest byte, or -WARREN_EINVAL if it holds a newline. */
WARREN_INLINE s64 choose_anchor(const u8 *literal, u64 length)
{
    u64 anchor = 0, rarest = 0;
    for (u64 index = 0; index < length; index++) {
        if (literal[index] == '\n')
            return -WARREN_EINVAL;
        u64 rank = rarity(literal[index]);
        if (rank > rarest) {
            rarest = rank;
            anchor = index;
        }
    }
    return anchor;
}

WARREN_INLINE u64 equal(const u8 *left, const u8 *right, u64 length)
{
    u64 index = 0;
    for (; index + 8 <= length; index += 8)
        if (warren_load64(left + index) != warren_load64(right + index))
            return 0;
    for (; index < length; index++)
        if (left[index] != right[index])
            return 0;
    return 1;
}

/* Emits the lines of [at, end) that match. */
static s64 grep_block(const u8 *at, const u8 *end, u64 length, u64 anchor)
{
    const u8 *literal = (const u8 *)literal_words;
    u64 pattern = warren_spread(literal[anchor]);
    const u8 *line = at; /* lines before it are done */
    while ((u64)(end - at) >= length) {
        const u8 *start = warren_find(at + anchor, end, pattern) - anchor;
        if ((u64)(end - start) < length)
            return 0;
        if (!equal(start, literal, length)) {
            at = start + 1;
            continue;
        }
        while (start > line && start[-1] != '\n')
            start--;
        line = warren_find(start, end, WARREN_NEWLINE);
        if (line != end)
            line++;
        s64 failed = warren_emit(start, line - start);
        if (failed)
            return failed;
        at = line;
    }
    return 0;
}

WARREN_KERNEL(request)
{
    s64 length = fetch_literal();
    if (length < 0)
        return length;
    s64 anchor = choose_anchor((const u8 *)literal_words, length);
    if (anchor < 0)
        return anchor;
    struct warren_lines lines;
    s64 failed = warren_lines_begin(&lines, request);
    if (failed)
        return failed;
    for (;;) {
        const u8 *at;
        s64 size = warren_lines_next(&lines, &at);
        if (size <= 0)
            return size;
        failed = grep_block(at, at + size, length, anchor);
        if (failed)
            return failed;
    }
}
