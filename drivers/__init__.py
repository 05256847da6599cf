"""Where frames come from: Micro-Manager, recorded files, the virtual specimen."""
