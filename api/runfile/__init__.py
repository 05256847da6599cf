"""The run file: its schema and layout, its reader, verification and copies."""

from microdiffusion.runfile.attributes import attribute_of
from microdiffusion.runfile.catalogue import list_runs
from microdiffusion.runfile.copy import snapshot_run
from microdiffusion.runfile.entry import RunEntry, RunState, lock_path
from microdiffusion.runfile.files import RunParts, is_run_file, lacking_sentence, require_run_file
from microdiffusion.runfile.layout import (
    Chunks,
    RunLayout,
    create_run_file,
    open_hdf5,
    peek,
    read_layout,
    require_compression,
)
from microdiffusion.runfile.pyramid import Factors, Pyramid, coarser, level_factors, level_shape
from microdiffusion.runfile.reader import Run, open_positions, open_run
from microdiffusion.runfile.records import settled
from microdiffusion.runfile.schema import (
    CHECKED,
    EFFORTS,
    ENGINE_BYTES,
    EVENT_KIND_BYTES,
    EVENT_ROOM,
    LAYOUT_MINOR,
    LAYOUT_VERSION,
    OWNER_BYTES,
    OWNER_ROOM,
    REASON_BYTES,
    RUNTIMES,
    SENDER_COLUMNS,
    SENDER_ROOM,
    SERVED,
    STAGES,
    UNPLACED_ROOM,
    Closed,
    RunPlan,
    Status,
    file_bytes,
    position_prefix,
    recorded_fields,
    runtime_code,
    segment_path,
)
from microdiffusion.runfile.series import TimeSeries, expanded
from microdiffusion.runfile.summary import coded, summary_lines
from microdiffusion.runfile.sweeps import FrameTable, assemble
from microdiffusion.runfile.traces import RoiTraces, traces_of
from microdiffusion.runfile.verify import Report, verify_run

__all__ = [
    "CHECKED",
    "EFFORTS",
    "ENGINE_BYTES",
    "EVENT_KIND_BYTES",
    "EVENT_ROOM",
    "LAYOUT_MINOR",
    "LAYOUT_VERSION",
    "OWNER_BYTES",
    "OWNER_ROOM",
    "REASON_BYTES",
    "RUNTIMES",
    "SENDER_COLUMNS",
    "SENDER_ROOM",
    "SERVED",
    "STAGES",
    "UNPLACED_ROOM",
    "Chunks",
    "Closed",
    "Factors",
    "FrameTable",
    "Pyramid",
    "Report",
    "RoiTraces",
    "Run",
    "RunEntry",
    "RunLayout",
    "RunParts",
    "RunPlan",
    "RunState",
    "Status",
    "TimeSeries",
    "assemble",
    "attribute_of",
    "coarser",
    "coded",
    "create_run_file",
    "expanded",
    "file_bytes",
    "is_run_file",
    "lacking_sentence",
    "level_factors",
    "level_shape",
    "list_runs",
    "lock_path",
    "open_hdf5",
    "open_positions",
    "open_run",
    "peek",
    "position_prefix",
    "read_layout",
    "recorded_fields",
    "require_compression",
    "require_run_file",
    "runtime_code",
    "segment_path",
    "settled",
    "snapshot_run",
    "summary_lines",
    "traces_of",
    "verify_run",
]
