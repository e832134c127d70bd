"""PCI: finding functions and what hangs on them (`sysfs`, `uses`, `taking`), naming them (`names`), reaching their
configuration space (`config`, `capabilities`)."""
