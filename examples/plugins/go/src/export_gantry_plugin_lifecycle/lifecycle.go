package export_gantry_plugin_lifecycle

import (
	"encoding/json"

	. "go.bytecodealliance.org/pkg/wit/types"
	. "wit_component/gantry_plugin_lifecycle"
	"wit_component/policy"
)

// Configure reads the binding's `config`.
func Configure(config string) Result[Unit, []ConfigIssue] {
	var issues []ConfigIssue
	if err := json.Unmarshal([]byte(config), &policy.Current); err != nil {
		issues = append(issues, ConfigIssue{Pointer: "", Message: err.Error(), Fatal: true})
	}
	if len(policy.Current.Allowed) == 0 {
		issues = append(issues, ConfigIssue{Pointer: "/allowed", Message: "no repository is allowed", Fatal: true})
	}
	if policy.Current.Annotation == "" {
		issues = append(issues, ConfigIssue{Pointer: "/annotation", Message: "no annotation is named", Fatal: true})
	}
	if len(issues) > 0 {
		return Err[Unit](issues)
	}
	return Ok[Unit, []ConfigIssue](Unit{})
}

func ConfigSchema() string {
	return "{}"
}

func SelfTest() Result[Unit, string] {
	return Ok[Unit, string](Unit{})
}
