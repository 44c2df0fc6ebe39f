"""One short story per mode. A stage gets built objects and dataclasses, never a configuration tree."""
