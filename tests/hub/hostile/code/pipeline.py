open("canary", "w").close()
