"""How programs on the stack share the processors with each other and with the daemon.

`settings` has the classes and what can be said of a program; `groups` (cgroups) and `tasks` (policies, nice values, affinity)
are the two ways to have the kernel do it; `ahead` keeps the daemon before its programs; `scheduler` puts them together.
"""
