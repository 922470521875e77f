/*
 * passthrough_flfs: the data as it is, through the OpenCSD helpers alone. The model for a kernel
 * that is to run on FluffleFS too.
 *
 * Operations: read_stream and view.
 * Arguments:  none.
 * Output:     the request's bytes.
 */
#include <bpf_helpers_prog.h>

#include <bpf_helpers_flfs.h>

/* The bytes of the request that the file has. */
static uint64_t readable(const struct flfs_call *call)
{
    if (call->dims.offset >= call->ino.size)
        return 0;
    uint64_t rest = call->ino.size - call->dims.offset;
    return call->dims.size < rest ? call->dims.size : rest;
}

int main(void)
{
    void *info = 0;
    bpf_get_call_info(&info);
    if (info == 0)
        return -1;
    const struct flfs_call *call = info;
    if (call->op != FLFS_READ_STREAM)
        return -3;

    uint64_t *lba = info;
    find_data_lba(&lba, false);
    uint64_t zone_size = bpf_get_zone_size();
    uint64_t sector_size = bpf_get_sector_size();
    uint64_t memory_size = 0;
    void *memory = 0;
    bpf_get_mem_info(&memory, &memory_size);
    if (memory_size < sector_size)
        return -4;

    /* As many sectors at a time as the scratch memory holds. */
    uint64_t batch = memory_size / sector_size * sector_size;
    uint64_t left = readable(call);
    uint64_t skip = call->dims.offset % sector_size;
    while (left > 0) {
        uint64_t filled = 0;
        while (filled < batch && filled < skip + left) {
            uint64_t zone, sector;
            if (*lba == 0)
                return -2;
            lba_to_position(*lba, zone_size, &zone, &sector);
            if (bpf_read(zone, sector, 0, sector_size, (uint8_t *)memory + filled) < 0)
                return -5;
            filled += sector_size;
            next_data_lba(&lba);
        }
        uint64_t bytes = filled - skip < left ? filled - skip : left;
        bpf_return_data((uint8_t *)memory + skip, bytes);
        left -= bytes;
        skip = 0;
    }
    return 0;
}
