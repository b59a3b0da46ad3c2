// Package policy is the configuration, and what it says of manifests.
package policy

import (
	"strings"

	types "wit_component/gantry_plugin_types"
)

// Config is what the binding says.
type Config struct {
	Allowed    []string `json:"allowed"`    // prefixes of repositories
	Annotation string   `json:"annotation"` // the annotation an image must carry
}

// Current is the instance's, which answers one call.
var Current Config

// Lists says whether a repository is on the list.
func (config Config) Lists(repository string) bool {
	for _, prefix := range config.Allowed {
		if strings.HasPrefix(repository, prefix) {
			return true
		}
	}
	return false
}

// SaysSource says whether an image says where it comes from. A document that the gateway does not read says nothing.
func (config Config) SaysSource(document types.Document) bool {
	if document.Tag() != types.Document_Manifest {
		return false
	}
	for _, annotation := range document.Manifest().Annotations {
		if annotation.F0 == config.Annotation {
			return annotation.F1 != ""
		}
	}
	return false
}
