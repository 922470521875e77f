/*
 * knn: the vectors nearest to a query by Euclidean (L2) distance.
 *
 * The file is an array of vectors of D little-endian i16, one after the other from its first byte
 * on; bytes at its end that make no vector are left out. Quantised embeddings look like that.
 *
 * Operations: read_stream, view. A vector belongs to the request in which it begins.
 * Arguments:  0   D, the dimensions, 1 to 1024
 *             1   K, how many neighbours, 1 to 256
 *             2.. the query, four i16 to an argument, the first one lowest; missing ones are 0
 * Output:     up to K times: the vector's number in the file u64, its squared distance u64; the
 *             nearest first, of equally near ones the one with the lower number.
 */
#include <warren_util.h>

#define DIMENSIONS_MAX 1024
#define NEIGHBOURS_MAX 256

struct neighbour {
    u64 number;
    u64 distance;
};

static u64 query[DIMENSIONS_MAX / 4];
static struct neighbour nearest[NEIGHBOURS_MAX];

/* Component `index` of four in a word. */
#define COMPONENT(word, index) ((s64)((word) << (48 - 16 * (index))) >> 48)

WARREN_INLINE u64 distance_of_4(u64 left, u64 right)
{
    s64 a = COMPONENT(left, 0) - COMPONENT(right, 0);
    s64 b = COMPONENT(left, 1) - COMPONENT(right, 1);
    s64 c = COMPONENT(left, 2) - COMPONENT(right, 2);
    s64 d = COMPONENT(left, 3) - COMPONENT(right, 3);
    return (u64)(a * a) + (u64)(b * b) + (u64)(c * c) + (u64)(d * d);
}

/* Words of the query compared between two looks at whether the vector is too far already. */
#define WORDS_PER_LOOK 8

/* The squared distance of the vector at `at` to the query, or some number from `enough` on. */
WARREN_INLINE u64 distance(const u8 *at, u64 dimensions, u64 enough)
{
    u64 sum = 0, word = 0, words = dimensions / 4;
    while (word < words) {
        u64 stop = warren_min(word + WORDS_PER_LOOK, words);
        for (; word < stop; word++)
            sum += distance_of_4(warren_load64(at + word * 8), query[word]);
        if (sum >= enough)
            return sum;
    }
    for (u64 index = words * 4; index < dimensions; index++) {
        s64 difference = (s16)warren_load16(at + index * 2) - COMPONENT(query[words], index % 4);
        sum += (u64)(difference * difference);
    }
    return sum;
}

/* Puts a neighbour in its place; the farthest goes if there are `limit` already. The new count. */
static u64 insert(u64 count, u64 limit, u64 number, u64 distance)
{
    u64 place = count < limit ? count++ : limit - 1;
    for (; place > 0 && nearest[place - 1].distance > distance; place--) {
        nearest[place].number = nearest[place - 1].number;
        nearest[place].distance = nearest[place - 1].distance;
    }
    nearest[place].number = number;
    nearest[place].distance = distance;
    return count;
}

/* Fetches the query. Components past the last argument are 0, those past the last one unused. */
WARREN_INLINE void fetch_query(u64 dimensions)
{
    for (u64 word = 0; word < (dimensions + 3) / 4; word++)
        query[word] = warren_argument_or(2 + word, 0);
}

WARREN_KERNEL(request)
{
    u64 dimensions = warren_argument_or(0, 0), limit = warren_argument_or(1, 0);
    if (dimensions == 0 || dimensions > DIMENSIONS_MAX || limit == 0 || limit > NEIGHBOURS_MAX)
        return -WARREN_EINVAL;
    fetch_query(dimensions);
    u64 vector = dimensions * 2;
    u64 number = (request->offset + vector - 1) / vector;
    u64 stop = (warren_request_end(request) + vector - 1) / vector;
    stop = warren_min(stop, request->snapshot_size / vector);
    u64 per_chunk = WARREN_CHUNK / vector, count = 0;
    while (number < stop) {
        const u8 *at;
        u64 vectors = warren_min(stop - number, per_chunk);
        s64 got = warren_map_afresh(number * vector, vectors * vector, &at);
        if (got < (s64)(vectors * vector))
            return got < 0 ? got : -WARREN_EIO;
        for (; vectors > 0; vectors--, number++, at += vector) {
            u64 enough = count < limit ? ~0ULL : nearest[limit - 1].distance;
            u64 away = distance(at, dimensions, enough);
            if (away < enough)
                count = insert(count, limit, number, away);
        }
    }
    return warren_emit(nearest, count * sizeof(struct neighbour));
}
