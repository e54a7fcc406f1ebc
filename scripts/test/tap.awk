# SPDX-License-Identifier: GPL-2.0-only
#
# Read one virtual machine's output (vm.sh), print one line a test point, and
# count: awk -v vm=NAME -v sum=FILE -f tap.awk
#
# A program is what stands between "# kpt-begin: P" and "# kpt-end: P rc=N"
# (scripts/vm/jobs).  It fails once more if it had no plan, a plan that its points
# do not fill, or an exit status that no failed point explains.  The machine
# itself is one point: its job ended and the kernel's log is clean.  FILE gets
# "passed failed skipped" and then the failures and skips, one a line.

function emit(what, text) {
	print "[" vm "] " what "  " text
	fflush()
}
function pass(text) { passed++; emit("ok  ", text) }
function fail(text) { failed++; emit("FAIL", text); list[++n] = "FAIL  [" vm "] " text }
function skip(text, why) {
	skipped++
	text = text " # " (why == "" ? "no reason given" : why)
	emit("skip", text)
	list[++n] = "skip  [" vm "] " text
}
function reset() {
	passed = failed = skipped = n = 0
	prog = ""
	delete list
}
function start(name) {
	prog = name
	plan = -1
	points = bad = 0
	whole = ""
	forget()
}
function end(rc, before) {
	before = failed
	if (whole != "")
		skip(prog, whole)
	else if (plan < 0)
		fail(prog ": no plan" (rc != "" ? ", exit status " rc : "") note())
	else if (points != plan)
		fail(prog ": " points " of " plan " planned points" \
		     (rc != "" ? ", exit status " rc : "") note())
	else if (rc != 0 && rc != 4 && !bad)
		fail(prog ": exit status " rc note())
	if (failed > before)
		show()
	forget()
	prog = ""
}
function forget() {
	lines = 0
	last = reason = ""
}
function show(i) {
	for (i = 1; i <= lines; i++)
		emit("    ", line[i])
	forget()
}
function note() { return last == "" ? "" : " (" last ")" }

BEGIN { reset() }
{ sub(/\r$/, "") }

/^# kpt-vm: .* start$/ { reset(); emit("..  ", "machine starts"); next }
/^# kpt-begin: / {
	if (prog != "")
		end("")
	start($3)
	next
}
/^# kpt-end: / {
	rc = $4
	sub(/rc=/, "", rc)
	end(rc)
	next
}
/^# kpt-vm: .* end=/ {
	if (prog != "") {
		fail(prog ": the machine ended in it" note())
		show()
		prog = ""
	}
	text = $0
	match(text, / end=[0-9]+ /)
	status = substr(text, RSTART + 5, RLENGTH - 6)
	text = substr(text, RSTART + RLENGTH)
	ended = 1
	if (status == 0)
		pass("machine: " text)
	else if (status == 1 && failed)
		# the failed points say why; the log was found clean
		pass("machine: ended by itself, kernel log clean")
	else
		fail("machine: " text)
	next
}
/^# kernel: / || /^# emulator: / || /^# kpt-vm: / || /^# kpt-guest: / || /^# qemu: / { emit("    ", $0); next }
prog == "" { next }

/^[0-9]+\.\.[0-9]+/ {
	plan = $1
	sub(/.*\.\./, "", plan)
	plan += 0
	if (plan == 0) {
		whole = "skipped"
		if (match($0, /# *[Ss][Kk][Ii][Pp]/)) {
			whole = substr($0, RSTART + RLENGTH)
			sub(/^[^A-Za-z0-9]*/, "", whole)
		}
	}
	next
}
/^(not )?ok( |$)/ {
	points++
	text = $0
	isbad = sub(/^not /, "", text)
	sub(/^ok *[0-9]* *-? */, "", text)
	text = prog ": " text
	if (match(text, / *# *[Ss][Kk][Ii][Pp]/)) {
		why = substr(text, RSTART + RLENGTH)
		text = substr(text, 1, RSTART - 1)
		sub(/^[^A-Za-z0-9]*/, "", why)
		# kselftest puts the name where the reason should be; the
		# reason is in the line before
		if (text == prog ":") {
			text = text " " why
			why = reason
		}
		skip(text, why)
	} else if (isbad) {
		bad++
		show()
		fail(text)
	} else
		pass(text)
	forget()
	next
}
# What is no TAP is shown if a failure follows.
/^Bail out!/ { last = $0 }
/^# SKIP: / { reason = substr($0, 9) }
NF {
	if (!/^Bail/) {
		last = $0
		sub(/^# */, "", last)
		last = substr(last, 1, 160)
	}
	if (lines < 60)
		line[++lines] = $0
}
END {
	if (prog != "")
		fail(prog ": the machine ended in it")
	if (!ended)
		fail("machine: did not run to its end")
	printf "%d %d %d\n", passed, failed, skipped >sum
	for (i = 1; i <= n; i++)
		print list[i] >sum
}
