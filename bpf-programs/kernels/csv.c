/*
 * csv: columns of comma-separated lines, or the aggregate of one.
 *
 * Fields end at the delimiter or at the end of the line; quotes have no meaning. A carriage return
 * before the newline does not belong to the line. Columns count from 0; a column that a line does
 * not have is empty.
 *
 * Operations: read_stream, view. A line belongs to the request in which it begins.
 * Arguments:  0   0: project; 1: aggregate
 *             1   the delimiter's byte; 0: a comma
 *             2.. the columns to output, in this order, 1 to 16 of them; the column to aggregate
 * Output:     project: for each line the fields, with delimiters between and a newline after them;
 *             aggregate: rows u64, integers u64, sum i64 (modulo 2^64), least i64, largest i64. A
 *             field is an integer if it is an optional sign and 1 to 18 decimal digits; others
 *             count as rows only. Without any, least is the largest i64 and largest the least.
 */
#include <warren_lines.h>

#define COLUMNS_MAX 16
#define COLUMN_MAX 4096
#define DIGITS_MAX 18

static u64 wanted[COLUMNS_MAX];

/* Where the wanted fields of the current line are. */
static const u8 *field_at[COLUMNS_MAX];
static u64 field_size[COLUMNS_MAX];

struct aggregate {
    u64 rows;
    u64 integers;
    s64 sum;
    s64 least;
    s64 largest;
};

struct table {
    u64 delimiter; /* in every byte */
    u64 columns;
    u64 last; /* no field behind this column is looked at */
};

/* The first delimiter or newline of [at, end), or `end`. */
WARREN_INLINE const u8 *field_end(const u8 *at, const u8 *end, u64 delimiter)
{
    for (; end - at >= 8; at += 8) {
        u64 word = warren_load64(at);
        u64 marks = warren_zero_marks(word ^ delimiter) | warren_zero_marks(word ^ WARREN_NEWLINE);
        if (marks)
            return at + warren_first_mark(marks);
    }
    while (at < end && *at != (u8)delimiter && *at != '\n')
        at++;
    return at;
}

/* Bytes of the field without the carriage return of the line's end. */
WARREN_INLINE u64 field_bytes(const u8 *at, const u8 *stop, const u8 *end)
{
    u64 at_line_end = stop == end || *stop == '\n';
    return at_line_end && stop > at && stop[-1] == '\r' ? stop - at - 1 : stop - at;
}

/* Notes the wanted fields of the line at `at` and returns where the next line begins. */
WARREN_INLINE const u8 *split_line(const u8 *at, const u8 *end, const struct table *table)
{
    for (u64 index = 0; index < table->columns; index++)
        field_size[index] = 0;
    for (u64 column = 0;; column++) {
        const u8 *stop = field_end(at, end, table->delimiter);
        for (u64 index = 0; index < table->columns; index++)
            if (wanted[index] == column) {
                field_at[index] = at;
                field_size[index] = field_bytes(at, stop, end);
            }
        if (stop == end)
            return end;
        at = stop + 1;
        if (*stop == '\n')
            return at;
        if (column == table->last) {
            at = warren_find(at, end, WARREN_NEWLINE);
            return at == end ? end : at + 1;
        }
    }
}

/* Copies a field; both sides have eight bytes to spare unless `tight`. */
WARREN_INLINE void copy_field(u8 *to, const u8 *from, u64 size, u64 tight)
{
    u64 index = 0;
    if (!tight) {
        for (; index < size; index += 8)
            warren_store64(to + index, warren_load64(from + index));
        return;
    }
    for (; index < size; index++)
        to[index] = from[index];
}

static s64 project(const u8 *at, const u8 *end, const struct table *table, struct warren_writer *writer)
{
    while (at < end) {
        at = split_line(at, end, table);
        u64 total = table->columns + 8;
        for (u64 index = 0; index < table->columns; index++)
            total += field_size[index];
        s64 failed = warren_writer_room(writer, total);
        if (failed)
            return failed;
        u8 *to = writer->at;
        for (u64 index = 0; index < table->columns; index++) {
            const u8 *from = field_at[index];
            u64 size = field_size[index];
            if (size)
                copy_field(to, from, size, (u64)(end - from) < size + 8);
            to[size] = index + 1 == table->columns ? '\n' : (u8)table->delimiter;
            to += size + 1;
        }
        writer->at = to;
    }
    return 0;
}

/* Adds the field if it is an integer. */
WARREN_INLINE void add_integer(struct aggregate *all, const u8 *at, u64 size)
{
    u64 negative = size > 0 && *at == '-';
    if (size > 0 && (*at == '-' || *at == '+')) {
        at++;
        size--;
    }
    if (size == 0 || size > DIGITS_MAX)
        return;
    u64 magnitude = 0;
    for (u64 index = 0; index < size; index++) {
        u64 digit = (u64)at[index] - '0';
        if (digit > 9)
            return;
        magnitude = magnitude * 10 + digit;
    }
    s64 value = negative ? -(s64)magnitude : (s64)magnitude;
    all->integers++;
    all->sum = (s64)((u64)all->sum + (u64)value);
    if (value < all->least)
        all->least = value;
    if (value > all->largest)
        all->largest = value;
}

static void aggregate(const u8 *at, const u8 *end, const struct table *table, struct aggregate *all)
{
    while (at < end) {
        at = split_line(at, end, table);
        all->rows++;
        add_integer(all, field_at[0], field_size[0]);
    }
}

/* Fetches the columns. 0, or -WARREN_EINVAL. */
WARREN_INLINE s64 fetch_table(const struct warren_request *request, struct table *table, u64 mode)
{
    u64 delimiter = warren_argument_or(1, 0);
    u64 columns = request->argument_count < 2 ? 0 : request->argument_count - 2;
    if (delimiter > 255 || delimiter == '\n' || columns == 0 || columns > COLUMNS_MAX)
        return -WARREN_EINVAL;
    if (mode == 1 && columns != 1)
        return -WARREN_EINVAL;
    table->delimiter = warren_spread(delimiter ? delimiter : ',');
    table->columns = columns;
    table->last = 0;
    for (u64 index = 0; index < columns; index++) {
        u64 column;
        if (warren_argument(2 + index, &column) != 0 || column > COLUMN_MAX)
            return -WARREN_EINVAL;
        wanted[index] = column;
        if (column > table->last)
            table->last = column;
    }
    return 0;
}

WARREN_KERNEL(request)
{
    struct table table;
    struct warren_lines lines;
    struct warren_writer writer = {0, 0};
    struct aggregate all = {0, 0, 0, (s64)(~0ULL >> 1), (s64)(1ULL << 63)};
    u64 mode = warren_argument_or(0, 2);
    if (mode > 1)
        return -WARREN_EINVAL;
    s64 failed = fetch_table(request, &table, mode);
    if (failed)
        return failed;
    failed = warren_lines_begin(&lines, request);
    if (failed)
        return failed;
    for (;;) {
        const u8 *at;
        s64 size = warren_lines_next(&lines, &at);
        if (size < 0)
            return size;
        if (size == 0)
            break;
        if (mode == 1) {
            aggregate(at, at + size, &table, &all);
            continue;
        }
        failed = project(at, at + size, &table, &writer);
        if (failed)
            return failed;
    }
    if (mode == 1)
        return warren_emit(&all, sizeof(all));
    warren_writer_end(&writer);
    return 0;
}
