"""`nvidia-smi -q`: everything that is known of each device, as text or XML."""

from __future__ import annotations

import re
import time
from xml.etree import ElementTree

from orion_client.smi import query
from orion_client.smi.gather import Device
from orion_client.text import printable

# A section is a title with lines or sections in it; a value stands behind its title.
Item = tuple[str, "str | list[Item]"]
_NAMES = {  # what the XML calls them, where it is not the title in small letters
    "Product Name": "product_name", "GPU UUID": "uuid", "Bus Id": "pci_bus_id", "FB Memory Usage": "fb_memory_usage",
    "GPU Current Temp": "gpu_temp", "Gpu": "gpu_util", "Memory": "memory_util", "Encoder": "encoder_util",
    "Decoder": "decoder_util", "SM": "sm_clock", "Graphics": "graphics_clock", "Memory Clock": "mem_clock",
    "Power Draw": "power_draw", "Process ID": "pid", "Name": "process_name", "Used GPU Memory": "used_memory",
    "Process": "process_info", "GPU Power Readings": "gpu_power_readings", "PCI": "pci",
    "Performance State": "performance_state", "ECC Mode": "ecc_mode", "MIG Mode": "mig_mode",
}  # fmt: skip
# -d: the sections that belong to a word.
DISPLAYS = {
    "MEMORY": ("FB Memory Usage",), "UTILIZATION": ("Utilization",), "TEMPERATURE": ("Temperature",),
    "POWER": ("GPU Power Readings",), "CLOCK": ("Clocks", "Max Clocks"), "COMPUTE": ("Compute Mode",),
    "PIDS": ("Processes",), "PERFORMANCE": ("Performance State",), "ECC": ("ECC Mode",),
}  # fmt: skip


def text(devices: list[Device], count: int, now_s: float, displays: list[str]) -> list[str]:
    """Lines as of nvidia-smi -q. `count`: of all devices, also those that are not shown."""
    lines = ["", "==============NVSMI LOG==============", ""]
    for title, value in _head(devices, count, now_s):
        lines.append(_line(title, str(value), 0))
    for device in devices:
        lines += ["", f"GPU {query.bus_id(device) or device.uuid}"]
        lines += _text(_shown(_items(device), displays), 1)
    return [*lines, ""]


def xml(devices: list[Device], count: int, now_s: float, displays: list[str]) -> str:
    """The same as XML, in nvidia-smi's elements."""
    root = ElementTree.Element("nvidia_smi_log")
    for title, value in _head(devices, count, now_s):
        ElementTree.SubElement(root, _element_name(title)).text = str(value)
    for device in devices:
        gpu = ElementTree.SubElement(root, "gpu", id=query.bus_id(device) or device.uuid)
        _add(gpu, _shown(_items(device), displays))
    ElementTree.indent(root, "\t")
    return '<?xml version="1.0" ?>\n' + ElementTree.tostring(root, encoding="unicode")


def _head(devices: list[Device], count: int, now_s: float) -> list[Item]:
    versions = [d.cuda_version for d in devices if d.cuda_version]
    return [
        ("Timestamp", time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(now_s))),
        ("Driver Version", next((d.driver for d in devices if d.driver), "") or "N/A"),
        ("CUDA Version", query.cuda_text(min(versions)) if versions else "N/A"),
        ("Attached GPUs", str(count)),
    ]


def _items(device: Device) -> list[Item]:
    row = query.Row(device, 1, 0.0)

    def value(field: str) -> str:
        told = query.GPU_FIELDS[field].text(row, units=True)
        return "N/A" if told == query.NOT_AVAILABLE else told

    temperature = value("temperature.gpu")
    processes: list[Item] = [
        ("Process", [
            ("Process ID", str(p.pid)), ("Type", "C"), ("Name", printable(p.name)),
            ("Used GPU Memory", f"{query.mib(p.used_bytes)} MiB"),
        ])
        for p in device.processes
    ]  # fmt: skip
    return [
        ("Product Name", printable(device.name)),
        ("Display Active", "Disabled"),
        ("Persistence Mode", value("persistence_mode")),
        ("MIG Mode", [("Current MIG", value("mig.mode.current")), ("Pending MIG", value("mig.mode.pending"))]),
        ("GPU UUID", device.uuid),
        ("PCI", [("Bus Id", value("pci.bus_id")), ("Device Id", value("pci.device_id"))]),
        ("Fan Speed", value("fan.speed")),
        ("Performance State", value("pstate")),
        ("FB Memory Usage", [
            ("Total", value("memory.total")), ("Reserved", value("memory.reserved")), ("Used", value("memory.used")),
            ("Free", value("memory.free")),
        ]),
        ("Compute Mode", value("compute_mode")),
        ("Utilization", [
            ("Gpu", value("utilization.gpu")), ("Memory", value("utilization.memory")),
            ("Encoder", value("utilization.encoder")), ("Decoder", value("utilization.decoder")),
        ]),
        ("ECC Mode", [("Current ECC", value("ecc.mode.current")), ("Pending ECC", value("ecc.mode.pending"))]),
        ("Temperature", [("GPU Current Temp", temperature if temperature == "N/A" else f"{temperature} C")]),
        ("GPU Power Readings", [
            ("Power Draw", value("power.draw")), ("Current Power Limit", value("enforced.power.limit")),
            ("Default Power Limit", value("power.default_limit")), ("Min Power Limit", value("power.min_limit")),
            ("Max Power Limit", value("power.max_limit")),
        ]),
        ("Clocks", [
            ("Graphics", value("clocks.current.graphics")), ("SM", value("clocks.current.sm")),
            ("Memory Clock", value("clocks.current.memory")),
        ]),
        ("Max Clocks", [
            ("Graphics", value("clocks.max.graphics")), ("SM", value("clocks.max.sm")),
            ("Memory Clock", value("clocks.max.memory")),
        ]),
        ("Processes", processes if processes else "None"),
    ]  # fmt: skip


def _shown(items: list[Item], displays: list[str]) -> list[Item]:
    wanted = {title for word in displays for title in DISPLAYS[word]}
    return [item for item in items if item[0] in wanted] if displays else items


def _text(items: list[Item], depth: int) -> list[str]:
    lines = []
    for title, value in items:
        if isinstance(value, str):
            lines.append(_line(title.replace("Memory Clock", "Memory"), value, depth))
        else:
            lines.append("    " * depth + title)
            lines += _text(value, depth + 1)
    return lines


def _line(title: str, value: str, depth: int) -> str:
    return f"{'    ' * depth + title:<50}: {value}"


def _add(parent: ElementTree.Element, items: list[Item]) -> None:
    for title, value in items:
        element = ElementTree.SubElement(parent, _element_name(title))
        if isinstance(value, str):
            element.text = "" if title == "Processes" else _xml_text(value)
        else:
            _add(element, value)


def _element_name(title: str) -> str:
    return _NAMES.get(title, title.lower().replace(" ", "_"))


def _xml_text(text: str) -> str:
    """Without what XML cannot hold."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
