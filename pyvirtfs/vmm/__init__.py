"""Adapters that know one virtual machine monitor each."""
