// Opens a device of a VFIO group as a hypervisor does, closes what can be closed, and waits to be ended.
// Usage: hold GROUP ADDRESS [hide]. With "hide" the group's descriptor is closed: only the device's stays.
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void need(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    char node[64];
    snprintf(node, sizeof node, "/dev/vfio/%s", argv[1]);
    int container = open("/dev/vfio/vfio", O_RDWR);
    need(container >= 0, "/dev/vfio/vfio");
    int group = open(node, O_RDWR);
    need(group >= 0, node);
    need(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0, "VFIO_GROUP_SET_CONTAINER");
    need(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0, "VFIO_SET_IOMMU");
    int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[2]);
    need(device >= 0, "VFIO_GROUP_GET_DEVICE_FD");
    if (argc > 3 && strcmp(argv[3], "hide") == 0) {
        close(group);
        close(container);
    }
    puts("holding");
    fflush(stdout);
    pause();
    return 0;
}
