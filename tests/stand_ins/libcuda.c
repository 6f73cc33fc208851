/* A libcuda that answers as it is told when it is compiled: INIT, COUNT, CONTEXT, USED, PEER. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

int cuInit(unsigned flags)
{
    if (INIT < 0)
        abort();
    return INIT;
}

int cuDeviceGetCount(int *count)
{
    *count = COUNT;
    return 0;
}

/* The last GPU is the one whose context fails with CONTEXT. */
int cuDevicePrimaryCtxRetain(void **context, int device)
{
    *context = (void *)8;
    return device == COUNT - 1 ? CONTEXT : 0;
}

int cuCtxSetCurrent(void *context)
{
    return 0;
}

int cuMemGetInfo_v2(size_t *free, size_t *total)
{
    *total = 85899345920UL;
    *free = *total - USED;
    return 0;
}

int cuDeviceCanAccessPeer(int *reaches, int from, int to)
{
    *reaches = PEER;
    return 0;
}
