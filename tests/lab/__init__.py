"""The lab: Debian's kernel in QEMU with an IOMMU and real device models, for tests of what drives hardware."""
