"""The dashboard's pages: one module each, called by `dashboard.app`."""
