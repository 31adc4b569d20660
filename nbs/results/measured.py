"Time and memory of a case in a process of its own; nothing heavy is imported"
import subprocess, sys
from pathlib import Path

def resident(what):
    "Resident memory of this process now (VmRSS), or the highest since `forget_peak` (VmHWM), bytes"
    said = next(o for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(what))
    return int(said.split()[1])*1024

def forget_peak():
    "Begin to look for the highest resident memory anew; what there is now"
    Path('/proc/self/clear_refs').write_text('5')
    return resident('VmRSS')

def in_process(script, *args):
    "What `script --one ARGS`, in a process of its own, prints last"
    r = subprocess.run([sys.executable, script, '--one', repr(args)], capture_output=True, text=True)
    if r.returncode: raise RuntimeError(r.stderr)
    return eval(r.stdout.splitlines()[-1])
