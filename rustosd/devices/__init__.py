"""The devices the daemon takes from the kernel and gives back.

    linkstate   what a NIC was to the kernel: addresses, routes, MTU, settings
    hostlink    reading that over netlink, and restoring it
    adoption    the same state in the stack's terms
    rules       which device a [[device]] rule of the configuration means
    kinds       which of our drivers drives what
    kernel      the blocking side: looking, binding, opening, giving back
    manager     `DeviceManager`: what is held, and every way in and out
    watch       plugged, unplugged, failing, reaching too far: what the kernel tells, for the manager
"""
