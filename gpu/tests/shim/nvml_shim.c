/* A stand-in for libnvidia-ml.so.1, as much of it as phalanx-gpu calls, so that its reading of NVML is tested on machines
 * without a GPU. What it plays is chosen when it is compiled:
 *
 *   (default)         8 GPUs of two NUMA nodes on NVSwitches: 18 links each, as an HGX H100 board has them
 *   -DSHIM_CUBE       8 GPUs wired straight to each other as a hybrid cube mesh, as a DGX-1 V100 has them
 *   -DSHIM_PCIE       4 GPUs without NVLink, one at every PCIe distance
 *   -DSHIM_MIG        2 GPUs: the first in MIG mode with two instances, the second whole
 *   -DSHIM_MIG_EMPTY  2 GPUs, the first in MIG mode without an instance
 *   -DSHIM_LOST       8 GPUs, number 3 fallen off the bus
 *   -DSHIM_NONE       a driver without a GPU
 *   -DSHIM_MISMATCH   nvmlInit answers NVML_ERROR_LIB_RM_VERSION_MISMATCH
 *   -DSHIM_NOT_LOADED nvmlInit answers NVML_ERROR_DRIVER_NOT_LOADED
 *   -DSHIM_STRANGE    nvmlInit answers a code that no header names
 *   -DSHIM_HANG       nvmlInit never comes back
 *   -DSHIM_HANG_LATER the use of a device never comes back
 *   -DSHIM_OLD        a driver that lacks every function younger than NVML 10 (MIG, memory v2)
 *
 * Signatures and values follow nvml.h.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15,
       LIB_RM_VERSION_MISMATCH = 18 };
enum { SINGLE = 10, MULTIPLE = 20, HOSTBRIDGE = 30, NODE = 40, SYSTEM = 50 };

typedef struct { int gpu; int instance; /* -1: the whole GPU */ } Device;
typedef struct { char bus_id_legacy[16]; unsigned domain, bus, device, pci_device_id, pci_sub_system_id; char bus_id[32]; } PciInfo;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned gpu, memory; } Utilization;

#if defined(SHIM_PCIE)
#define GPUS 4
#elif defined(SHIM_MIG) || defined(SHIM_MIG_EMPTY)
#define GPUS 2
#elif defined(SHIM_NONE)
#define GPUS 0
#else
#define GPUS 8
#endif

static Device whole[8] = {{0, -1}, {1, -1}, {2, -1}, {3, -1}, {4, -1}, {5, -1}, {6, -1}, {7, -1}};
static Device instances[2] = {{0, 0}, {0, 1}};

static void place(PciInfo *pci, unsigned bus) {
    memset(pci, 0, sizeof *pci);
    pci->bus = bus;
    snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "0000:%02X:00.0", bus);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", bus);
}

static unsigned gpu_bus(int gpu) { return 0x10 + 0x10 * (unsigned)gpu; }

int nvmlInit_v2(void) {
#if defined(SHIM_MISMATCH)
    return LIB_RM_VERSION_MISMATCH;
#elif defined(SHIM_NOT_LOADED)
    return DRIVER_NOT_LOADED;
#elif defined(SHIM_STRANGE)
    return 4711;
#elif defined(SHIM_HANG)
    for (;;) pause();
#endif
    return SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    snprintf(version, length, "550.54.15");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = GPUS;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    if (index >= GPUS) return INVALID_ARGUMENT;
#if defined(SHIM_LOST)
    if (index == 3) return GPU_IS_LOST;
#endif
    *device = &whole[index];
    return SUCCESS;
}

int nvmlDeviceGetName(Device *device, char *name, unsigned length) {
    snprintf(name, length, device->instance < 0 ? "NVIDIA H100 80GB HBM3" : "NVIDIA H100 80GB HBM3 MIG 3g.40gb");
    return SUCCESS;
}

int nvmlDeviceGetUUID(Device *device, char *uuid, unsigned length) {
    if (device->instance < 0)
        snprintf(uuid, length, "GPU-%08d-1111-2222-3333-444444444444", device->gpu);
    else
        snprintf(uuid, length, "MIG-%08d-1111-2222-3333-%012d", device->gpu, device->instance);
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(Device *device, PciInfo *pci) {
    place(pci, gpu_bus(device->gpu));
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *utilization) {
#if defined(SHIM_HANG_LATER)
    for (;;) pause();
#endif
    if (device->instance >= 0) return NOT_SUPPORTED;
    utilization->gpu = 10 * (unsigned)device->gpu + 7;
    utilization->memory = 1;
    return SUCCESS;
}

#if !defined(SHIM_OLD)
int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *memory) {
    if (memory->version != (sizeof *memory | 2u << 24)) return INVALID_ARGUMENT;
    memory->total = device->instance < 0 ? 80ull << 30 : 40ull << 30;
    memory->reserved = 1ull << 30;
    memory->used = (unsigned long long)(device->gpu + 1) << 30;
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
#if defined(SHIM_MIG) || defined(SHIM_MIG_EMPTY)
    *current = *pending = device->gpu == 0;
    return SUCCESS;
#else
    (void)device, (void)current, (void)pending;
    return NOT_SUPPORTED;
#endif
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) {
    (void)device;
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **instance) {
    (void)device;
#if defined(SHIM_MIG_EMPTY)
    return NOT_FOUND;
#endif
    /* The places in use need not be the first ones. */
    if (index != 1 && index != 4) return NOT_FOUND;
    *instance = &instances[index == 4];
    return SUCCESS;
}
#endif

/* Distances: pairs share a switch, fours a host bridge's NUMA node, eights the machine. */
int nvmlDeviceGetTopologyCommonAncestor(Device *a, Device *b, unsigned *level) {
#if defined(SHIM_PCIE)
    static const unsigned from_first[4] = {0, SINGLE, MULTIPLE, HOSTBRIDGE};
    if (a->gpu == 0 || b->gpu == 0) *level = from_first[a->gpu + b->gpu];
    else *level = a->gpu + b->gpu == 5 ? SYSTEM : NODE;
#else
    *level = a->gpu / 2 == b->gpu / 2 ? SINGLE : a->gpu / 4 == b->gpu / 4 ? NODE : SYSTEM;
#endif
    return SUCCESS;
}

#if defined(SHIM_CUBE)
/* A DGX-1's six links per GPU: twice to two neighbours, once to two more. */
static const int cube[8][6] = {{1, 2, 3, 3, 4, 4}, {0, 2, 2, 3, 5, 5}, {0, 1, 1, 3, 3, 6}, {0, 0, 1, 2, 2, 7},
                               {0, 0, 5, 6, 7, 7}, {1, 1, 4, 6, 6, 7}, {2, 4, 5, 5, 7, 7}, {3, 4, 4, 5, 6, 6}};
#endif

int nvmlDeviceGetNvLinkState(Device *device, unsigned link, unsigned *active) {
    (void)device;
#if defined(SHIM_PCIE) || defined(SHIM_OLD)
    return NOT_SUPPORTED;
#elif defined(SHIM_CUBE)
    if (link >= 6) return INVALID_ARGUMENT;
#else
    if (link >= 18) return INVALID_ARGUMENT;
#endif
    *active = 1;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(Device *device, unsigned link, PciInfo *pci) {
#if defined(SHIM_CUBE)
    place(pci, gpu_bus(cube[device->gpu][link]));
#else
    /* Four switches that take 4, 5, 4 and 5 links of each GPU. */
    (void)device;
    place(pci, 0xa0 + (link < 4 ? 0 : link < 9 ? 1 : link < 13 ? 2 : 3));
#endif
    return SUCCESS;
}
