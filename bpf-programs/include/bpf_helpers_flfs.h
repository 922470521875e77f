/*
 * What bpf_get_call_info points at, with the names and layouts of FluffleFS's header of the same
 * name, so that its kernels compile with this one unchanged.
 *
 *     read stream:  struct flfs_call | LBA of each sector of the request
 *     read event:   struct flfs_call | LBA of each sector of the data
 *     writes:       struct flfs_call | struct flfs_write_call | LBA of each sector of the data
 *
 * An LBA counts sectors over the device: zone * zone size + sector in the zone. Holes and data that
 * is nowhere on the device yet have LBAs in zones past its end; bpf_read knows them. There is always
 * one LBA, and none is 0.
 */
#ifndef WARREN_BPF_HELPERS_FLFS_H
#define WARREN_BPF_HELPERS_FLFS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The first two are FluffleFS's, with its numbers; the others exist here only. */
enum flfs_operations {
    FLFS_READ_STREAM = 0,
    FLFS_WRITE_EVENT = 1,
    FLFS_WRITE_STREAM = 2,
    FLFS_READ_EVENT = 3,
};

/* The range of the request in the file, in bytes. */
struct dimensions {
    uint64_t size;
    uint64_t offset;
};

enum flfs_types {
    FLFS_FILE = 0,
    FLFS_DIR = 1,
};

/* The file. Not packed: four bytes of padding follow the type. */
struct inode {
    uint64_t inode;
    uint64_t parent;
    enum flfs_types type;
    uint64_t size;
};

struct __attribute__((packed)) flfs_call {
    enum flfs_operations op;
    struct dimensions dims;
    struct inode ino;
};

/*
 * Writes only. The data begins `pre_pad` bytes into its first sector, here always 0, and ends
 * `post_pad` bytes before the end of its last one. The sectors set aside for this run are the LBAs
 * [start_ptr, end_ptr), and wp_ptr is the next to be written.
 */
struct __attribute__((packed)) flfs_write_call {
    uint64_t pre_pad;
    uint64_t post_pad;
    uint64_t start_ptr;
    uint64_t wp_ptr;
    uint64_t end_ptr;
};

enum write_return_status {
    WRITE_SUCCESS = 0,
    WRITE_FAIL = 1,
    WRITE_DEVICE_FULL_SUCCESS = 2,
    WRITE_DEVICE_FULL_FAIL = 3,
};

/* What FluffleFS's write kernels return, before the LBAs they wrote. */
struct __attribute__((packed)) flfs_write_return {
    enum write_return_status status;
    uint64_t size;
};

#if defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
_Static_assert(sizeof(struct inode) == 32, "type is padded to eight bytes");
_Static_assert(offsetof(struct flfs_call, dims) == 4, "size follows op without a gap");
_Static_assert(offsetof(struct flfs_call, ino) == 20, "ino follows offset without a gap");
_Static_assert(sizeof(struct flfs_call) == 52, "the LBAs follow at byte 52");
_Static_assert(sizeof(struct flfs_write_call) == 40, "five words");
_Static_assert(sizeof(struct flfs_write_return) == 12, "status and size");
#endif

/* Moves a pointer to the request on to the first LBA of its data. */
static inline void find_data_lba(uint64_t **call_info, bool write)
{
    uint8_t *at = (uint8_t *)*call_info + sizeof(struct flfs_call);
    *call_info = (uint64_t *)(write ? at + sizeof(struct flfs_write_call) : at);
}

/* Moves on to the LBA of the next sector. */
static inline void next_data_lba(uint64_t **cur_data_lba)
{
    ++*cur_data_lba;
}

/* The position that bpf_read and bpf_write take. */
static inline void lba_to_position(uint64_t lba, uint64_t zone_size, uint64_t *zone, uint64_t *sector)
{
    uint64_t quotient = lba / zone_size;
    *zone = quotient;
    *sector = lba - quotient * zone_size;
}

#endif
