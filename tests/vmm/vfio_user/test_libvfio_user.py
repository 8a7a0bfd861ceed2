"""What the tests of libvfio-user check, row by row, and where it is tested here; or why it does not apply.

The names are those of section 4 of our notes on the protocol, which are libvfio-user's own (test/py/test_*.py).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent

NO_QUIESCE = (
    "no call of libvfio-user's C API exists here: a device never asks for peace, it is passive between messages"
)
NO_SETUP = (
    "a function is set up in Python before it is served (tests/pci); a wrong one is a ConfigError, never a message"
)
NO_MMAP = "no region can be mapped: each doorbell is a message"
NO_MIGRATION = "the device offers no migration: test_connection.test_migration_and_dirty_pages_are_not_supported"

# libvfio-user's test: module and test here.
TESTED = {
    "negotiate: short_write": "test_negotiation.test_short_write",
    "negotiate: long_write": "test_negotiation.test_long_write",
    "negotiate: bad_command": "test_negotiation.test_bad_command",
    "negotiate: invalid_major": "test_negotiation.test_invalid_major",
    "negotiate: invalid_json_missing_NUL": "test_negotiation.test_invalid_json_missing_nul",
    "negotiate: invalid_json_missing_closing_brace": "test_negotiation.test_invalid_json_missing_closing_brace",
    "negotiate: invalid_json_missing_closing_quote": "test_negotiation.test_invalid_json_missing_closing_quote",
    "negotiate: invalid_json_bad_capabilities_object": "test_negotiation.test_invalid_json_bad_capabilities_object",
    "negotiate: invalid_json_bad_max_fds (3 variants)": "test_negotiation.test_invalid_json_bad_max_fds",
    "negotiate: invalid_json_bad_migration_object": "test_negotiation.test_invalid_json_bad_migration_object",
    "negotiate: invalid_json_bad_pgsize (2)": "test_negotiation.test_invalid_json_bad_pgsize",
    "negotiate: valid_negotiate_no_json": "test_negotiation.test_valid_negotiate_no_json",
    "negotiate: valid_negotiate_empty_json": "test_negotiation.test_valid_negotiate_empty_json",
    "negotiate: valid_negotiate_json": "test_negotiation.test_valid_negotiate_json",
    "negotiate: destroying": "test_negotiation.test_destroying",
    "request_errors: too_small": "test_connection.test_request_errors_too_small",
    "request_errors: too_large": "test_connection.test_request_errors_too_large",
    "request_errors: unsolicited_reply": "test_connection.test_request_errors_unsolicited_reply",
    "request_errors: bad_command": "test_connection.test_request_errors_bad_command",
    "request_errors: no_payload": "test_connection.test_request_errors_no_payload",
    "request_errors: bad_request_closes_fds": "test_connection.test_bad_request_closes_fds",
    "request_errors: disconnected_socket": "test_connection.test_request_errors_disconnected_socket",
    "device_get_info": "test_connection.test_device_get_info",
    "device_get_region_info: short_write": "test_connection.test_device_get_region_info_short_write",
    "device_get_region_info: bad_argsz": "test_connection.test_device_get_region_info_bad_argsz",
    "device_get_region_info: bad_index": "test_connection.test_device_get_region_info_bad_index",
    "device_get_region_info: larger_argsz": "test_connection.test_device_get_region_info_larger_argsz",
    "device_get_region_info: 32bit_bar_size_detection": "test_regions.test_32bit_bar_size_detection",
    "device_get_region_info: 64bit_bar_size_detection_protocol": "test_regions.test_64bit_bar_size_detection_protocol",
    "device_get_region_info: pci config region implicit (2)": (
        "test_connection.test_device_get_region_info_pci_config_region"
    ),
    "device_get_region_info_zero_size": "test_connection.test_device_get_region_info_zero_size",
    "device_get_region_io_fds: bad_flags": "test_connection.test_region_io_fds_bad_flags",
    "device_get_region_io_fds: bad_count": "test_connection.test_region_io_fds_bad_count",
    "device_get_region_io_fds: buffer_too_small": "test_connection.test_region_io_fds_buffer_too_small",
    "device_get_region_io_fds: buffer_too_large": "test_connection.test_region_io_fds_buffer_too_large",
    "device_get_region_io_fds: no_fds": "test_connection.test_region_io_fds_no_fds",
    "device_get_region_io_fds: no_regions_setup": "test_connection.test_region_io_fds_no_regions_setup",
    "device_get_region_io_fds: region_no_mmap": "test_connection.test_region_io_fds_no_fds",
    "device_get_region_io_fds: region_out_of_range": "test_connection.test_region_io_fds_region_out_of_range",
    "device_get_region_io_fds: nothing": "test_connection.test_region_io_fds_no_fds",
    "device_get_irq_info: bad_in": "test_irqs.test_device_get_irq_info_bad_in",
    "device_get_irq_info: ok": "test_irqs.test_device_get_irq_info_ok",
    "device_set_irqs: no_irq_set": "test_irqs.test_no_irq_set",
    "device_set_irqs: short_write": "test_irqs.test_short_write",
    "device_set_irqs: bad_argsz": "test_irqs.test_bad_argsz",
    "device_set_irqs: bad_index": "test_irqs.test_bad_index",
    "device_set_irqs: bad_flags_MASK_and_UNMASK, _DATA_NONE_and_DATA_BOOL, ...": "test_irqs.test_bad_flags_actions",
    "device_set_irqs: bad_flags_DATA_*": "test_irqs.test_bad_flags_datas",
    "device_set_irqs: bad_start_count_range (3)": "test_irqs.test_bad_start_count_range",
    "device_set_irqs: bad_action_for_err/req": "test_irqs.test_bad_action_for_err_and_req",
    "device_set_irqs: bad_start_count_range_for_err/req": "test_irqs.test_bad_start_count_range_for_err_and_req",
    "device_set_irqs: bad_start_for_count_0": "test_irqs.test_bad_start_for_count_0",
    "device_set_irqs: bad_action_for_count_0": "test_irqs.test_bad_action_for_count_0",
    "device_set_irqs: bad_action_and_data_type_for_count_0": "test_irqs.test_bad_action_and_data_type_for_count_0",
    "device_set_irqs: bad_fds_for_DATA_BOOL, _DATA_NONE": "test_irqs.test_bad_fds_for_data_bool_and_none",
    "device_set_irqs: bad_fds_for_count_2": "test_irqs.test_bad_fds_for_count_2",
    "device_set_irqs: trigger_bool_too_small": "test_irqs.test_trigger_bool_too_small",
    "device_set_irqs: trigger_bool_too_large": "test_irqs.test_trigger_bool_too_large",
    "device_set_irqs: disable": "test_irqs.test_disable",
    "device_set_irqs: enable": "test_irqs.test_enable",
    "device_set_irqs: enable_update": "test_irqs.test_enable_update",
    "device_set_irqs: enable_trigger_none": "test_irqs.test_enable_trigger_none",
    "device_set_irqs: enable_trigger_bool": "test_irqs.test_enable_trigger_bool",
    "device_set_irqs: irq_state": "test_irqs.test_irq_state_masked_vectors_stay_pending",
    "irq_trigger: bad_subindex": "test_irqs.test_irq_trigger_bad_subindex",
    "irq_trigger: no_interrupt": "test_irqs.test_irq_trigger_unassigned_is_dropped",
    "irq_trigger: ok": "test_irqs.test_enable",
    "dma_map: region_too_big": "test_dma.test_region_too_big",
    "dma_map: region_too_many": "test_dma.test_region_too_many",
    "dma_map: reply_fail": "test_dma.test_map_reply_fail",
    "dma_unmap: short_write": "test_dma.test_unmap_short_write",
    "dma_unmap: bad_argsz (2)": "test_dma.test_unmap_bad_argsz",
    "dma_unmap: dirty_*": "test_dma.test_unmap_dirty_bitmap_is_refused",
    "dma_unmap: invalid_flags": "test_dma.test_unmap_invalid_flags",
    "dma_unmap: ok": "test_dma.test_unmap_ok",
    "dma_unmap: invalid_addr": "test_dma.test_unmap_invalid_addr",
    "dma_unmap: async": "test_connection.test_what_the_client_takes_away_while_the_server_waits",
    "dma_unmap: all": "test_dma.test_unmap_all",
    "dma_unmap: all_invalid_addr": "test_dma.test_unmap_all_invalid_addr",
    "dma_unmap: all_invalid_flags": "test_dma.test_unmap_all_invalid_flags",
    "sgl_get_put": "test_dma.test_sgl_get_put_across_regions",
    "sgl_read_write: access by messages": "test_connection.test_sgl_read_write",
    "sgl_read_write: chunking": "test_connection.test_sgl_read_write_in_turns",
    "sgl_read_write: error reply": "test_connection.test_sgl_error_reply",
    "pci_caps: write_px (FLR resets once)": "test_irqs.test_eventfds_outlive_a_function_level_reset",
    "pci_caps: write_msix": "test_irqs.test_the_function_mask",
    "pci_ext_caps: write_hdr, readonly, callback, write_dsn, write_vendor": (
        "test_regions.test_extended_configuration_space_is_empty_and_readonly"
    ),
    "setup_region: region_offset_overflow": "test_regions.test_region_offset_overflow",
    "setup_region: access_region_zero_count": "test_connection.test_access_region_zero_count",
    "setup_region: access_region_large_count": "test_connection.test_access_region_large_count",
    "setup_region: region_offset_too_short": "test_connection.test_region_offset_too_short",
    "setup_region: large_64bit_bar_sizes": "test_connection.test_large_64bit_bar_sizes",
    "setup_region: 64bit_*": "test_regions.test_64bit_bar_size_detection_protocol",
    "setup_region: cfg_always_cb*": "test_regions.test_a_write_that_spans_fields_of_configuration_space",
    "destroy": "test_connection.test_destroy",
    "dirty_pages": "test_connection.test_migration_and_dirty_pages_are_not_supported",
    "migration": "test_connection.test_migration_and_dirty_pages_are_not_supported",
}

# libvfio-user's test: why there is none here.
NOT_APPLICABLE = {
    "request_errors: disconnected_socket_quiesce_busy": NO_QUIESCE,
    "request_errors: reply_fail_quiesce_busy": NO_QUIESCE,
    "device_get_region_info: small_argsz_caps": f"no region has capabilities: {NO_MMAP}",
    "device_get_region_info: caps": f"no region has capabilities: {NO_MMAP}",
    "device_get_region_io_fds: fds_read_write": f"there are no descriptors: {NO_MMAP}",
    "device_get_region_io_fds: full": f"there are no descriptors: {NO_MMAP}",
    "device_get_region_io_fds: dupe_fd": f"there are no descriptors: {NO_MMAP}",
    "device_get_region_io_fds: invalid_fd": f"a wrong argument of vfu_create_ioeventfd: {NO_MMAP}",
    "device_get_region_io_fds: ioeventfd_invalid_size": f"a wrong argument of vfu_create_ioeventfd: {NO_MMAP}",
    "shadow_ioeventfd": NO_MMAP,
    "dma_map: busy": NO_QUIESCE,
    "dma_map: busy_reply_fail": NO_QUIESCE,
    "quiesce: 12 tests": NO_QUIESCE,
    "pci_caps: bad_flags, no_cb, unknown_cap, bad_pos, add_caps": f"arguments of vfu_pci_add_capability; {NO_SETUP}",
    "pci_caps: write_msi": "the device has no MSI; SET_IRQS of that index is refused: test_irqs.test_no_irq_set",
    "pci_caps: write_pxdc2, write_pxlc2": "write masks of the PCI Express capability: tests/pci/test_express.py",
    "pci_ext_caps: conventional, unknown, bad_pos, add, find": f"arguments of vfu_pci_add_capability; {NO_SETUP}",
    "setup_region: bad_flags, bad_mmap_areas, bad_index, bad_pci": f"arguments of vfu_setup_region; {NO_SETUP}",
    "vfu_create_ctx": NO_SETUP,
    "vfu_realize_ctx": NO_SETUP,
    "migration: states, data, arcs": NO_MIGRATION,
}


@pytest.mark.parametrize("behaviour", TESTED)
def test_there_is_a_test(behaviour: str) -> None:
    module, name = TESTED[behaviour].split(".")
    tree = ast.parse((HERE / f"{module}.py").read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_row_stands_on_one_side() -> None:
    assert not TESTED.keys() & NOT_APPLICABLE.keys()
    assert all(NOT_APPLICABLE.values())
