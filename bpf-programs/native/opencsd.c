/*
 * The helpers of the OpenCSD ABI over a snapshot in memory.
 *
 * Three areas of made-up zones hold the sectors of a run: those of the snapshot, those of its data,
 * and those set aside for writing. Zones are small and not full, so that kernels which compute
 * positions wrongly are found out.
 */
#include "internal.h"

#include <bpf_helpers_flfs.h>
#include <bpf_helpers_prog.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define current warren_native_current

#define SECTOR 4096
#define ZONE_SIZE 16
#define ZONE_CAPACITY 12

/* struct flfs_call has an odd multiple of four bytes: the LBAs behind it are aligned this way. */
#define SKEW 4

/* First zones of the areas. Zone 0 is none, so that no LBA is 0. */
#define SNAPSHOT_ZONE 1
#define DATA_ZONE (1ULL << 40)
#define RESERVED_ZONE (1ULL << 41)

static uint64_t lba_of(uint64_t first_zone, uint64_t sector)
{
    return (first_zone + sector / ZONE_CAPACITY) * ZONE_SIZE + sector % ZONE_CAPACITY;
}

/* Bytes of an area from its start to (zone, sector, offset); false if that lies in no zone. */
static bool position_in(uint64_t first_zone, uint64_t zone, uint64_t sector, uint64_t offset,
                        uint64_t *position)
{
    if (zone < first_zone || sector >= ZONE_CAPACITY || offset >= SECTOR)
        return false;
    *position = ((zone - first_zone) * ZONE_CAPACITY + sector) * SECTOR + offset;
    return true;
}

static uint64_t sectors(uint64_t bytes)
{
    return (bytes + SECTOR - 1) / SECTOR;
}

void bpf_return_data(void *data, uint64_t size)
{
    warren_emit(data, size);
}

/* The bytes of an area, and zeros from their end to the end of their last sector. */
static int read_area(const uint8_t *bytes, uint64_t length, uint64_t position, uint64_t size, void *to)
{
    if (position + size > sectors(length) * SECTOR)
        return -1;
    uint64_t there = position < length ? length - position : 0;
    if (there > size)
        there = size;
    if (there)
        memcpy(to, bytes + position, there);
    memset((uint8_t *)to + there, 0, size - there);
    return 0;
}

int bpf_read(uint64_t zone, uint64_t sector, uint64_t offset, uint64_t size, void *data)
{
    const struct warren_native_input *input = &current->input;
    uint64_t position;
    if (size > (uint64_t)ZONE_CAPACITY * SECTOR)
        return -1;
    if (zone >= RESERVED_ZONE)
        return -1;
    if (position_in(DATA_ZONE, zone, sector, offset, &position))
        return read_area(input->data, input->data_size, position, size, data);
    if (position_in(SNAPSHOT_ZONE, zone, sector, offset, &position))
        return read_area(input->snapshot, input->snapshot_size, position, size, data);
    return -1;
}

int bpf_write(uint64_t zone, uint64_t *sector, uint64_t offset, uint64_t size, void *data)
{
    uint64_t position;
    if (!position_in(RESERVED_ZONE, zone, *sector, offset, &position))
        return -1;
    /* On from where the last write ended, or from the next sector on. */
    uint64_t gap = sectors(current->appended_size) * SECTOR - current->appended_size;
    static const uint8_t zeros[SECTOR];
    if (position == current->appended_size)
        gap = 0;
    else if (position != current->appended_size + gap)
        return -1;
    return warren_append(zeros, gap) == 0 && warren_append(data, size) == 0 ? 0 : -1;
}

uint64_t bpf_get_sector_size(void)
{
    return SECTOR;
}

uint64_t bpf_get_zone_capacity(void)
{
    return ZONE_CAPACITY;
}

uint64_t bpf_get_zone_size(void)
{
    return ZONE_SIZE;
}

void bpf_get_mem_info(void **mem_ptr, uint64_t *mem_size)
{
    *mem_ptr = current->heap;
    *mem_size = current->heap_size;
}

static uint8_t *put_lbas(uint8_t *to, uint64_t first_zone, uint64_t first, uint64_t end)
{
    for (uint64_t sector = first; sector < end; sector++, to += 8) {
        uint64_t lba = lba_of(first_zone, sector);
        memcpy(to, &lba, sizeof(lba));
    }
    return to;
}

/* A request without sectors has one LBA, which is not 0 and cannot be read. */
static void put_some(uint8_t *to, uint64_t first_zone, uint64_t first, uint64_t end)
{
    if (put_lbas(to, first_zone, first, end) == to)
        put_lbas(to, RESERVED_ZONE - 1, 0, 1);
}

static void put_snapshot(uint8_t *to)
{
    const struct warren_native_input *input = &current->input;
    uint64_t first = input->offset / SECTOR, end = first;
    if (input->offset < input->snapshot_size) {
        uint64_t rest = input->snapshot_size - input->offset;
        uint64_t size = input->size < rest ? input->size : rest;
        if (size)
            end = sectors(input->offset + size);
    }
    put_some(to, SNAPSHOT_ZONE, first, end);
}

static uint8_t *put_write_call(uint8_t *to)
{
    struct flfs_write_call write = {0};
    uint64_t size = current->input.data_size;
    write.post_pad = sectors(size) * SECTOR - size;
    write.start_ptr = lba_of(RESERVED_ZONE, 0);
    write.wp_ptr = lba_of(RESERVED_ZONE, sectors(current->appended_size));
    write.end_ptr = lba_of(RESERVED_ZONE, current->output_limit / SECTOR);
    memcpy(to, &write, sizeof(write));
    return to + sizeof(write);
}

void bpf_get_call_info(void **call)
{
    const struct warren_native_input *input = &current->input;
    if (!current->call) {
        uint64_t most = sectors(input->size) + sectors(input->data_size) + 2;
        struct flfs_call head = {0};
        current->call = calloc(1, SKEW + sizeof(head) + sizeof(struct flfs_write_call) + most * 8);
        if (!current->call) {
            *call = NULL;
            return;
        }
        head.op = input->op;
        head.dims.size = input->size;
        head.dims.offset = input->offset;
        head.ino.inode = 1;
        head.ino.parent = 1;
        head.ino.type = FLFS_FILE;
        head.ino.size = input->snapshot_size;
        memcpy(current->call + SKEW, &head, sizeof(head));
        uint8_t *at = current->call + SKEW + sizeof(head);
        if (input->op == FLFS_WRITE_EVENT || input->op == FLFS_WRITE_STREAM)
            at = put_write_call(at);
        if (input->op == FLFS_READ_STREAM)
            put_snapshot(at);
        else
            put_some(at, DATA_ZONE, 0, sectors(input->data_size));
    }
    *call = current->call + SKEW;
}

void bpf_debug(const char *string)
{
    fprintf(stderr, "kernel: %s\n", string);
}
