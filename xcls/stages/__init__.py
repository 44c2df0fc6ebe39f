"""One module per mode. A stage gets objects and dataclasses, never a configuration tree."""
